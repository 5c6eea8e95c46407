"""`mona lineage`: what fed a subset or a model, what a sample fed, and whether it is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mona.errors import RequestError, WorkError
from mona.files import refuse_existing, write_whole
from orchestration.config import Config, load_config
from orchestration.terminal import asset_partition, config_option, json_option, print_table


@click.group()
def lineage() -> None:
    """What fed what, and whether every recorded fact is still true."""


def _chain_command(kind: str, about: str) -> None:
    @lineage.command(kind, help=about)
    @click.argument("subset")
    @config_option
    @click.option("--dataset", help="where there is more than one")
    @click.option("--model", help="where there is more than one")
    @json_option
    def command(
        subset: str, config_path: str | None, dataset: str | None, model: str | None, as_json: bool
    ) -> None:
        config = load_config(config_path)
        _show_chain(asset_partition(config, kind, subset, dataset, model), config, as_json)


_chain_command("selection", "What TARGET/RECIPE's subset was chosen from, down to source files.")
_chain_command("finetune", "What fed the model of TARGET/RECIPE, down to source files.")


def _show_chain(asset: str, config: Config, as_json: bool) -> None:
    from orchestration.definitions import build_resources
    from orchestration.lineage import chain, kind, subset_origins

    resources = build_resources(config)
    links = chain(resources["records"], asset)
    if as_json:
        rows = [
            {"depth": link.depth, "digest": link.digest, **_plain(link.record)} for link in links
        ]
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for link in links:
        record = link.record
        indent = "  " * link.depth
        click.echo(f"{indent}{record.asset}  record {link.digest[:16]}")
        click.echo(f"{indent}  data version {record.data_version[:16]}")
        for name, version in record.entries.items():
            click.echo(f"{indent}  {name} {version[:16]}")
        for name, seal in record.tables.items():
            click.echo(f"{indent}  table {name} version {seal.version}: {seal.rows:,} rows")
        for key, value in record.about.items():
            shown = "; ".join(f"{k} {v}" for k, v in value.items()) if key == "sources" else value
            click.echo(f"{indent}  {key}: {shown}")
        if kind(record.asset) == "selection":
            for row in subset_origins(resources["store"], record):
                click.echo(f"{indent}  {row['samples']} of {row['source']} ({row['licence']})")
    libraries = links[0].record.libraries
    click.echo("made with " + ", ".join(f"{name} {v}" for name, v in libraries.items()))


def _plain(record: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(record)


def _uses_command(kind: str, metavar: str, about: str) -> None:
    @lineage.command(kind, help=about)
    @click.argument("name", metavar=metavar)
    @config_option
    @json_option
    def command(name: str, config_path: str | None, as_json: bool) -> None:
        from orchestration.definitions import build_resources
        from orchestration.lineage import uses_of_origin, uses_of_sample
        from resources.withdrawals import Withdrawals, shown_reasons

        resources = build_resources(load_config(config_path))
        records, store = resources["records"], resources["store"]
        ledger = Withdrawals(records.home)
        uses = (
            uses_of_sample(records, store, name)
            if kind == "sample"
            else uses_of_origin(records, store, kind, name)
        )
        rows: list[dict[str, Any]] = [
            {
                "subset": use.subset,
                "record": use.record,
                "standing": "current" if use.current else "past",
                "rank": use.rank,
                "score": use.score,
                "sample_id": use.sample_id,
                "origins": use.origins,
                "finetunes": use.finetunes,
                "withdrawn": shown_reasons(ledger.of_sample(use.sample_id)),
            }
            for use in sorted(uses, key=lambda use: (use.subset, not use.current, use.rank))
        ]
        if as_json:
            click.echo(json.dumps(rows, ensure_ascii=False))
            return
        if kind == "sample" and ledger.of_sample(name):
            click.echo(f"{name}: {shown_reasons(ledger.of_sample(name))}")
        shown = [
            {
                **row,
                "record": row["record"][:16],
                "score": f"{row['score']:.4f}",
                "finetunes": ", ".join(row["finetunes"]),
            }
            for row in rows
        ]
        columns = ["subset", "standing", "rank", "score", "sample_id", "finetunes", "record"]
        print_table(shown, columns, f"no subset ever held {kind} '{name}'")


_uses_command("sample", "ID", "Every subset and fine-tune, past ones too, that a sample is in.")
_uses_command("source", "NAME", "Every use of a source's samples, past ones too.")
_uses_command("licence", "NAME", "Every use of samples under a licence, past ones too.")


@lineage.command("export")
@config_option
@click.option("--out", type=click.Path(), required=True, help="the .jsonl file to write")
@click.option("--force", is_flag=True, help="replace what is there")
def export_command(config_path: str | None, out: str, force: bool) -> None:
    """Write the whole history as OpenLineage run events, a JSON object a line."""
    from orchestration.definitions import build_definitions, build_resources
    from orchestration.home import open_instance
    from orchestration.lineage_export import run_events

    config = load_config(config_path)
    path = _free(out, force)
    graph = build_definitions(config).resolve_asset_graph()
    with open_instance(config) as instance:
        events = list(run_events(graph, instance, build_resources(config)["records"]))
    _write(path, "".join(f"{event}\n" for event in events))
    click.echo(f"{path}: {len(events)} events")


@lineage.command("card")
@click.argument("subset")
@config_option
@click.option("--dataset", help="where there is more than one")
@click.option("--model", help="where there is more than one")
@click.option("--out", type=click.Path(), required=True, help="the .md file to write")
@click.option("--force", is_flag=True, help="replace what is there")
def card_command(
    subset: str,
    config_path: str | None,
    dataset: str | None,
    model: str | None,
    out: str,
    force: bool,
) -> None:
    """Write the dataset card of TARGET/RECIPE's subset: sources, licences, digests, choice."""
    from orchestration.definitions import build_resources
    from orchestration.subset_card import subset_card

    config = load_config(config_path)
    asset = asset_partition(config, "selection", subset, dataset, model)
    path = _free(out, force)
    resources = build_resources(config)
    _write(path, subset_card(resources["records"], resources["store"], asset))
    click.echo(path)


def _free(out: str, force: bool) -> Path:
    """Where to write. RequestError where something is, unless it may be replaced."""
    path = Path(out).expanduser()
    if path.is_dir():
        raise RequestError(f"{path}: is a folder; give the file to write")
    refuse_existing(path, force)
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror})") from error


@lineage.command("verify")
@config_option
@click.option("--rehash", is_flag=True, help="read every source file again as well")
@json_option
def verify_command(config_path: str | None, rehash: bool, as_json: bool) -> None:
    """Recompute every recorded digest from stored bytes and rows, and compare the records with
    Dagster's event log. Exit code 1 when anything is not as recorded."""
    from orchestration.definitions import build_definitions, build_resources
    from orchestration.home import open_instance
    from orchestration.planner import Standing
    from orchestration.verify import read_audit, verify, withdrawn
    from resources.engine import progress_bar

    config = load_config(config_path)
    resources = build_resources(config)
    with open_instance(config) as instance:
        standing = Standing(instance, build_definitions(config).resolve_asset_graph(), config)
        audit = read_audit(resources["records"])
        total = len(audit.kept)
        with progress_bar("verifying", total, "records") as advance:
            findings = verify(standing, audit, resources["store"], advance)
    if rehash:
        from orchestration.rehash import changed_sources

        findings = [*findings, *changed_sources(config, resources["records"])]
    rows = [
        {"asset": f.asset, "what": f.what, "problem": f.problem, "record": f.record[:16]}
        for f in findings
    ]
    taken = [
        {
            "asset": w.asset,
            "record": w.record[:16],
            "tables": ", ".join(w.tables),
            "withdrawn": w.why,
        }
        for w in withdrawn(audit)
    ]
    if as_json:
        click.echo(json.dumps({"records": total, "findings": rows, "withdrawn": taken}))
        taken = []
    elif rows:
        print_table(rows, ["asset", "what", "problem", "record"], "")
    else:
        click.echo(f"{total} records, every digest as recorded, Dagster's history agrees")
    if taken:
        print_table(taken, ["withdrawn", "asset", "tables", "record"], "")
    if findings:
        raise WorkError(f"{len(findings)} findings")
