"""What every command of `mona` shares: its options, and how it shows a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mona.errors import RequestError
from orchestration.config import CONFIG_VARIABLE, Config

_OUT = Console()
config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(),
    help=f"the configuration file; default: ${CONFIG_VARIABLE}",
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")


def only(given: str | None, known: dict[str, Any], kind: str) -> str:
    if given is None and len(known) == 1:
        return next(iter(known))
    if given not in known:
        listed = ", ".join(known)
        raise RequestError(
            f"no {kind} is called '{given}'" if given else f"pass --{kind}: one of {listed}"
        )
    return str(given)


def asset_partition(
    config: Config, kind: str, subset: str, dataset: str | None, model: str | None
) -> str:
    """The label of one of a subset's assets (`kind`: selection, finetune), from TARGET/RECIPE or
    controls/RECIPE. RequestError where the configuration has no such subset, or more than one
    dataset or model and none is named."""
    from assets.keys import subsets

    owner, _, recipe = subset.partition("/")
    if (owner, recipe) not in subsets(config.targets, config.recipes):
        raise RequestError(f"'{subset}' is no TARGET/RECIPE or controls/RECIPE of {config.path}")
    dataset = only(dataset, config.datasets, "dataset")
    return f"{subset}/{kind}[{dataset}|{only(model, config.models, 'model')}]"


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, since a partition in brackets would be read as markup.
        table.add_row(*(Text(str(row.get(column, ""))) for column in columns))
    # Into a pipe, a table keeps its full width: cut cells can't be searched.
    console = _OUT if sys.stdout.isatty() else Console(width=240)
    console.print(table)
