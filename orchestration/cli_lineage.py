"""`mona lineage`: what fed a subset or a model, what a sample fed, and whether it is true."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mona.errors import RequestError, WorkError
from mona.publishing import refuse_existing, write_whole
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
    from orchestration.lineage import chain, subset_origins

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
        if record.kind == "selection":
            for row in subset_origins(resources["store"], record):
                click.echo(f"{indent}  {row['samples']} of {row['source']} ({row['licence']})")
    libraries = links[0].record.libraries
    click.echo("made with " + ", ".join(f"{name} {v}" for name, v in libraries.items()))


def _plain(record: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(record)


@lineage.command("sample")
@click.argument("name", metavar="ID")
@config_option
@json_option
def sample_command(name: str, config_path: str | None, as_json: bool) -> None:
    """Every subset and fine-tune, past ones too, that a sample is in."""
    from orchestration.definitions import build_resources
    from orchestration.lineage import uses_of_sample
    from orchestration.withdrawal import ever_stored
    from resources.withdrawals import shown_reasons

    resources = build_resources(load_config(config_path))
    records, store = resources["records"], resources["store"]
    taken = records.ledger.of_sample(name)
    uses = uses_of_sample(records, store, name)
    if not uses and not taken and not ever_stored(store, name):
        raise RequestError(f"no pool, target or subset has a sample '{name}'")
    rows = _use_rows(uses, records)
    if not as_json and taken:
        click.echo(f"{name}: {shown_reasons(taken)}")
    _show_uses(rows, as_json, f"no subset ever held sample '{name}'")


def _origin_command(field: str, about: str) -> None:
    @lineage.command(field, help=about)
    @click.argument("name", metavar="NAME")
    @config_option
    @click.option("--rows", "each", is_flag=True, help="every sample, not the totals alone")
    @json_option
    def command(name: str, config_path: str | None, each: bool, as_json: bool) -> None:
        from orchestration.definitions import build_resources
        from orchestration.lineage import names_origin, origins_known, uses_of_origin

        resources = build_resources(load_config(config_path))
        records, store = resources["records"], resources["store"]
        uses = uses_of_origin(records, store, field, name)
        held = 0
        if not uses:
            known = origins_known(records, store, field)
            meant = [value for value in known if names_origin(field, name, value)]
            if not meant:
                raise RequestError(_never_seen(field, name, known))
            held = sum(known[value] for value in meant)
        empty = f"no subset ever held {field} '{name}'; {held:,} samples of the pools have it"
        if each:
            _show_uses(_use_rows(uses, records), as_json, empty)
            return
        totals = _totals(uses, field, name)
        if as_json:
            click.echo(json.dumps(totals, ensure_ascii=False))
            return
        shown = [
            {**row, **{key: ", ".join(row[key]) for key in (f"{field}s", "finetunes")}}
            for row in totals
        ]
        columns = ["subset", "standing", "samples", f"{field}s", "finetunes", "record"]
        print_table(shown, columns, empty)


def _never_seen(field: str, name: str, known: dict[str, int]) -> str:
    """One line that says what there is."""
    # Of sources, their names without labels: there may be hundreds of those.
    counts: dict[str, int] = {}
    for value, count in known.items():
        shown = value.partition("/")[0] if field == "source" else value
        counts[shown] = counts.get(shown, 0) + count
    listed = ", ".join(f"{value} ({count:,})" for value, count in counts.items())
    return f"no sample ever had a {field} called '{name}'; there are: {listed or 'none yet'}"


def _totals(uses: Sequence[Any], field: str, name: str) -> list[dict[str, Any]]:
    """One row a subset that was ever published, current ones first in each."""
    from orchestration.lineage import names_origin

    totals: dict[str, dict[str, Any]] = {}
    for use in sorted(uses, key=lambda use: (use.subset, not use.current, use.record)):
        row = totals.setdefault(
            use.record,
            {
                "subset": use.subset,
                "record": use.record[:16],
                "standing": "current" if use.current else "past",
                "samples": 0,
                f"{field}s": [],
                "finetunes": use.finetunes,
            },
        )
        row["samples"] += 1
        values = {str(origin[field]) for origin in use.origins}
        row[f"{field}s"] = sorted(
            {*row[f"{field}s"], *(v for v in values if names_origin(field, name, v))}
        )
    return list(totals.values())


def _use_rows(uses: Sequence[Any], records: Any) -> list[dict[str, Any]]:
    from resources.withdrawals import shown_reasons

    taken: dict[str, list[Any]] = {}
    for withdrawal in records.ledger.all():
        for key in withdrawal.all_ids:
            taken.setdefault(key, []).append(withdrawal)
    return [
        {
            "subset": use.subset,
            "record": use.record,
            "standing": "current" if use.current else "past",
            "rank": use.rank,
            "score": use.score,
            "sample_id": use.sample_id,
            "origins": use.origins,
            "finetunes": use.finetunes,
            "withdrawn": shown_reasons(taken.get(use.sample_id, [])),
        }
        for use in sorted(uses, key=lambda use: (use.subset, not use.current, use.rank))
    ]


def _show_uses(rows: Sequence[dict[str, Any]], as_json: bool, empty: str) -> None:
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
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
    print_table(shown, columns, empty)


_origin_command("source", "Every use of a source's samples, past ones too.")
_origin_command("licence", "Every use of samples under a licence, past ones too.")


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
    from orchestration.definitions import build_resources
    from orchestration.verify import read_audit, verify_project, withdrawn
    from resources.engine import progress_bar

    config = load_config(config_path)
    resources = build_resources(config)
    audit = read_audit(resources["records"])
    total = len(audit.kept)
    with progress_bar("verifying", total, "records") as advance:
        findings = verify_project(config, audit, resources["store"], advance)
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
