"""The `mona` command: what to do is read from the arguments, done elsewhere, shown here.

The groups of commands are the modules `cli_*` beside; how a command ends is `outcome`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mona import __version__
from mona.errors import RequestError, WorkError
from mona.registry import EXPORTS
from orchestration.cli_explain import explain
from orchestration.cli_gc import gc
from orchestration.cli_lineage import lineage
from orchestration.cli_pool import pool
from orchestration.cli_run import check, leaderboard, run, status
from orchestration.cli_withdraw import withdraw
from orchestration.config import CONFIG_VARIABLE, Config, load_config
from orchestration.outcome import exit_code
from orchestration.terminal import (
    KindName,
    asset_partition,
    config_option,
    json_option,
    only,
    plain_output,
    print_table,
    printable,
    subset_named,
)
from resources.asset_partition import AssetPartition

if TYPE_CHECKING:
    from mona.exports import FileKind


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mona", message="%(prog)s %(version)s")
def cli() -> None:
    """Choose the training data that makes a language model good at your task."""


@cli.group()
def select() -> None:
    """Look at selections."""


@select.command("show")
@click.argument("selection")
@config_option
@click.option("--dataset", help="where there is more than one")
@click.option("--model", help="where there is more than one")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="rows to show")
@click.option(
    "--sort", type=click.Choice(["rank", "source", "length"]), default="rank", show_default=True
)
@json_option
def show(
    selection: str,
    config_path: str | None,
    dataset: str | None,
    model: str | None,
    limit: int,
    sort: str,
    as_json: bool,
) -> None:
    """The chosen rows of TARGET/RECIPE, with score, source and text."""
    config = load_config(config_path)
    _, rows = _chosen(config, selection, dataset, model)
    rows.sort(key=lambda row: (row[sort], row["rank"]))
    if as_json:
        click.echo(json.dumps(rows[:limit], ensure_ascii=False))
        return
    shown = [
        {
            **{key: row[key] for key in ("rank", "source", "licence", "length", "sample_id")},
            "score": f"{row['score']:.4f}",
            "text": _one_line(row["messages"]),
        }
        for row in rows[:limit]
    ]
    columns = ["rank", "score", "source", "licence", "length", "text", "sample_id"]
    print_table(shown, columns, "nothing was chosen", shorten="text")


@select.command("summary")
@config_option
@json_option
def summary(config_path: str | None, as_json: bool) -> None:
    """For every selection made: its largest sources and its five best rows."""
    config = load_config(config_path)
    from orchestration.closing import made_subsets
    from orchestration.definitions import build_resources

    resources = build_resources(config)
    found = []
    for made in made_subsets(config, resources["records"], resources["store"]):
        subset, dataset, model = made["subset"], made["dataset"], made["model"]
        _, rows = _chosen(config, subset, dataset, model)
        counts = Counter(row["source"] for row in rows).most_common(8)
        found.append(
            {
                "subset": subset,
                "dataset": dataset,
                "model": model,
                "samples": len(rows),
                "sources": dict(counts),
                "best": rows[:5],
            }
        )
        if not as_json:
            top = printable(", ".join(f"{source} {count}" for source, count in counts))
            click.echo(f"\n{subset} from {dataset} by {model}: {len(rows)} samples")
            click.echo(f"  largest sources: {top}")
            for row in rows[:5]:
                text = printable(_one_line(row["messages"], 110))
                source = printable(row["source"])
                click.echo(f"  {row['rank']}. {row['score']:.4f} {source}: {text}")
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    elif not found:
        click.echo("no selection was made yet: mona run first")


@cli.command()
@click.argument("selection")
@config_option
@click.option("--dataset", help="where there is more than one")
@click.option("--model", help="where there is more than one")
@click.option("--format", "fmt", type=KindName(EXPORTS), required=True)
@click.option("--out", type=click.Path(), required=True, help="the file or folder to write")
@click.option("--force", is_flag=True, help="replace what is there")
@click.option("--skip-unfit", is_flag=True, help="leave out samples the format can't hold")
def export(
    selection: str,
    config_path: str | None,
    dataset: str | None,
    model: str | None,
    fmt: str,
    out: str,
    force: bool,
    skip_unfit: bool,
) -> None:
    """Write the subset of TARGET/RECIPE for another trainer."""
    from mona.exports import UnfitSampleError, files_of
    from mona.exports import export as write

    config = load_config(config_path)
    unfit: list[str] = []
    file = Path(out).expanduser()
    with _export_lock(config, file):
        subset, every = _chosen(config, selection, dataset, model)
        rows = [row for row in every if row["messages"] is not None]
        tuning = config.recipes[AssetPartition.parse(subset).subset[1]].finetune
        # The subset is written as the model that is tuned on it would be given it here.
        reads = tuning or config.models[only(model, config.models, "model")]
        with _noted(config, subset, rows, files_of(fmt, file, tuning)):
            try:
                written = write(
                    rows,
                    fmt,
                    file,
                    force=force,
                    left_out=unfit.append if skip_unfit else None,
                    training=tuning,
                    system=reads.system,
                )
            except UnfitSampleError as error:
                raise RequestError(f"{error}; --skip-unfit leaves such samples out") from error
    for path in written:
        click.echo(path)
    if len(rows) < len(every):
        click.echo(f"left out {len(every) - len(rows)} withdrawn samples", err=True)
    if unfit:
        click.echo(f"left out {len(unfit)} of {len(rows)} samples; first, {unfit[0]}", err=True)


@cli.command("register")
@click.argument("subset")
@click.option("--model", "folder", type=click.Path(), required=True, help="the tuned model")
@click.option("--data", type=click.Path(), help="the exported file it was trained on: checked")
@config_option
@click.option("--dataset", help="where there is more than one")
@click.option("--encoder", help="the model entry that chose, where there is more than one")
def register_command(
    subset: str,
    folder: str,
    data: str | None,
    config_path: str | None,
    dataset: str | None,
    encoder: str | None,
) -> None:
    """Take in a model that was tuned elsewhere on the subset of TARGET/RECIPE."""
    config = load_config(config_path)
    from orchestration.definitions import build_definitions, build_resources
    from orchestration.home import open_instance
    from orchestration.planner import Standing
    from orchestration.register import register
    from orchestration.run import observe

    named = subset_named(config, subset)
    partition = only(dataset, config.datasets, "dataset"), only(encoder, config.models, "encoder")
    resources = build_resources(config)
    with open_instance(config) as instance:
        observe(config, instance, resources)
        graph = build_definitions(config).resolve_asset_graph()
        path = register(
            Standing(instance, graph, config),
            resources["records"],
            resources["store"],
            named,
            partition,
            Path(folder).expanduser(),
            Path(data).expanduser() if data else None,
        )
    click.echo(path)


@cli.command()
@config_option
@click.option("--port", default=3000, show_default=True)
def ui(config_path: str | None, port: int) -> None:
    """Dagster's UI with its daemon on 127.0.0.1, over the store's history."""
    config = load_config(config_path)
    from orchestration.home import dagster_home

    os.environ["DAGSTER_HOME"] = dagster_home(config)
    os.environ[CONFIG_VARIABLE] = str(config.path)
    # Python looks for modules where it is started: not in a folder of the user's, which may well
    # have an `assets` of its own.
    os.chdir(os.environ["DAGSTER_HOME"])
    workspace = str(Path(__file__).with_name("workspace.yaml").resolve())
    command = [sys.executable, "-m", "dagster", "dev", "-w", workspace]
    click.echo(f"Dagster's UI: http://127.0.0.1:{port}")
    os.execv(sys.executable, [*command, "-h", "127.0.0.1", "-p", str(port)])


def _chosen(
    config: Config, selection: str, dataset: str | None, model: str | None
) -> tuple[str, list[dict[str, Any]]]:
    """(the selection's label, its rows with their messages, best first); `messages` is None for
    a sample that was withdrawn since."""
    from assets.subset import read_subset
    from orchestration.definitions import build_resources
    from resources.snapshot import Snapshot

    asset = asset_partition(config, "selection", selection, dataset, model)
    resources = build_resources(config)
    records = resources["records"]
    if records.current(asset) is None:
        raise WorkError(f"{asset} was never made: mona run first")
    read = Snapshot.of(resources["store"], records, [asset])
    return asset, read_subset(read, asset, only(dataset, config.datasets, "dataset"))


def _export_lock(config: Config, file: Path) -> AbstractContextManager[None]:
    """Held from the reading to the ledger's closed note, so that a withdrawal finds the file."""
    from orchestration.definitions import build_resources

    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
    lock: AbstractContextManager[None] = build_resources(config)["store"].lock(f"export.{name}")
    return lock


def _noted(
    config: Config, subset: str, rows: Sequence[dict[str, Any]], files: dict[Path, FileKind]
) -> AbstractContextManager[None]:
    """The ledger's note of an export, from before its files are written."""
    from orchestration.definitions import build_resources
    from resources.exports import Exports

    record = build_resources(config)["records"].current(subset)
    dataset, _ = AssetPartition.parse(subset).pair
    ids = [row["sample_id"] for row in rows]
    return Exports(config.home).writing(record or "", dataset, ids, files)


def _one_line(messages: Sequence[dict[str, str]] | None, width: int = 160) -> str:
    if messages is None:
        return "(withdrawn)"
    text = " | ".join(" ".join(message["content"].split()) for message in messages)
    return text if len(text) <= width else text[: width - 1] + "…"


for command in (run, status, check, leaderboard, explain, gc, lineage, pool, withdraw):
    cli.add_command(command)


def main() -> None:
    """The console command: one line and an exit code for every expected failure."""
    warnings.filterwarnings("ignore")
    # Threads that spin while they wait make work beside other work several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Lance warns about every table that it is about to make.
    for variable in ("LANCE_LOG", "LANCEDB_LOG"):
        os.environ.setdefault(variable, "error")
    # Libraries draw bars of their own: off a terminal a line every ten seconds, as ours.
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    with plain_output():
        status = exit_code(cli, sys.argv[1:])
    sys.exit(status)


if __name__ == "__main__":
    main()
