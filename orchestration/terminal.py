"""What every command of `mona` shares: its options, and how it shows a table and a text."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import click
from click.shell_completion import CompletionItem
from rich.cells import cell_len, set_cell_size

from mona.errors import RequestError
from mona.names import nearest
from mona.printable import escaped, printable
from mona.registry import Registry
from orchestration.config import CONFIG_VARIABLE, Config
from resources.asset_partition import AssetPartition

CONFIG_META = "mona.config"
_LEAST_TEXT = 24


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """For whoever reports a failure: which project it was about."""
    context.meta[CONFIG_META] = value
    return value


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(),
    callback=_remember,
    help=f"the configuration file; default: ${CONFIG_VARIABLE}",
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--dataset, --model, --target and --recipe, each any number of times."""
    for name in ("recipe", "target", "model", "dataset"):
        command = click.option(f"--{name}", f"{name}s", multiple=True, help="may be repeated")(
            command
        )
    return command


class KindName(click.ParamType):
    """The name of a kind that a register has; which there are is looked up when it is needed."""

    name = "kind"

    def __init__(self, kinds: Registry[Any]) -> None:
        self._kinds = kinds

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._kinds.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self._kinds.check(str(value))
        except RequestError as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._kinds.names() if name.startswith(incomplete)]


class _Plain(io.TextIOWrapper):
    """A stream on which no text can do more than be read: control characters come out as JSON
    writes them, but line breaks, tabs, and what progress bars need of standard error."""

    kept = "\n\t"

    def write(self, text: str) -> int:
        super().write(escaped(text, self.kept))
        return len(text)


@contextmanager
def plain_output() -> Iterator[None]:
    """Whatever is printed while the block runs, by whom, is plain: rows, names, errors of
    libraries. JSON stays JSON."""
    given = sys.stdout, sys.stderr
    plain = [_plain(stream, kept) for stream, kept in zip(given, ("\n\t", "\n\t\r"), strict=True)]
    sys.stdout, sys.stderr = cast(list[TextIO], plain)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = given
        for stream in plain:
            if isinstance(stream, _Plain):
                # Flushed, without closing what is written to.
                with suppress(OSError, ValueError):
                    stream.detach()


def _plain(stream: TextIO | None, kept: str) -> TextIO | None:
    buffer = getattr(stream, "buffer", None)
    if stream is None or buffer is None:
        return stream
    made = _Plain(
        buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
    )
    made.kept = kept
    return made


def only(given: str | None, known: dict[str, Any], kind: str) -> str:
    """The one that is meant. RequestError where the name is wrong, or needed and not given."""
    if given is None and len(known) == 1:
        return next(iter(known))
    if given not in known:
        listed = ", ".join(known)
        raise RequestError(
            f"no {kind} is called '{given}'{nearest(given, known)}"
            if given
            else f"pass --{kind}: one of {listed}"
        )
    return str(given)


def subset_named(config: Config, text: str) -> tuple[str, str]:
    """(owner, recipe) of TARGET/RECIPE or controls/RECIPE. RequestError where the configuration
    has no such subset."""
    from assets.keys import subsets

    known = {"/".join(pair): pair for pair in subsets(config.targets, config.recipes)}
    if text not in known:
        near = nearest(text, known)
        raise RequestError(
            f"'{text}' is no TARGET/RECIPE or controls/RECIPE of {config.path}{near}"
        )
    return known[text]


def asset_partition(
    config: Config, kind: str, subset: str, dataset: str | None, model: str | None
) -> str:
    """The label of one of a subset's assets (`kind`: selection, finetune), from TARGET/RECIPE or
    controls/RECIPE. RequestError where the configuration has no such subset, or more than one
    dataset or model and none is named."""
    owner, recipe = subset_named(config, subset)
    dataset = only(dataset, config.datasets, "dataset")
    model = only(model, config.models, "model")
    return str(AssetPartition((owner, recipe, kind), dataset, model))


def print_table(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], empty: str, *, shorten: str = ""
) -> None:
    """A line a row, never folded: what is copied or searched stays whole. The column `shorten`
    alone is cut, and only where a terminal is too narrow for it."""
    if not rows:
        click.echo(empty)
        return
    lines = [list(columns)]
    lines += [[printable(str(row.get(column, ""))) for column in columns] for row in rows]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    if shorten in columns and sys.stdout is not None and sys.stdout.isatty():
        at = list(columns).index(shorten)
        over = sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
        widths[at] = max(min(widths[at], _LEAST_TEXT), widths[at] - max(0, over))
    for line in lines:
        cells = (_cell(text, width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _cell(text: str, width: int) -> str:
    """The text in `width` columns of a terminal; wide characters take two."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    return text + " " * (width - cell_len(text))
