"""`mona pool`: the rows of a dataset as they are read, before any model runs and after."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mona.pool import account
from orchestration.config import Config, load_config
from orchestration.terminal import config_option, json_option, only, print_table, printable

if TYPE_CHECKING:
    from resources.records import Records
    from resources.store import Store

_Rows = Generator[dict[str, Any], None, None]


@click.group()
def pool() -> None:
    """Look at pools."""


@pool.command("show")
@click.argument("dataset", required=False)
@config_option
@click.option("--set-aside", is_flag=True, help="the rows that can't be used, and why")
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="rows to show"
)
@json_option
def show(
    dataset: str | None, config_path: str | None, set_aside: bool, limit: int, as_json: bool
) -> None:
    """The samples of DATASET and what became of its rows: as the pool was made, else as its
    sources are now, read without any model (a subsample is not drawn then)."""
    config = load_config(config_path)
    name = only(dataset, config.datasets, "dataset")
    seen = _made(config, name, set_aside, limit) or _previewed(config, name, set_aside, limit)
    if as_json:
        click.echo(json.dumps(seen, ensure_ascii=False))
        return
    standing = "" if seen["made"] else " (not made yet)"
    click.echo(printable(account(name, seen["accounts"]) + standing))
    for fault in seen["faults"]:
        click.echo(printable(f"mona run would refuse it: {fault}"))
    print_table(seen["sources"], ["source", "samples", "set aside", "nothing reads"], "no source")
    click.echo()
    if set_aside:
        print_table(seen["rows"], ["file", "line", "reason", "source"], "no row was set aside")
        return
    shown = [{**row, "text": _one_line(row["messages"])} for row in seen["rows"]]
    print_table(shown, ["source", "file", "line", "text", "sample_id"], "no sample")


def _made(config: Config, dataset: str, set_aside: bool, limit: int) -> dict[str, Any] | None:
    """What the pool's tables hold, at the versions that its record sealed; None without one."""
    from assets.keys import RAW_POOL, label
    from assets.raw_pool import pool_table, quarantine_table
    from orchestration.definitions import build_resources

    resources = build_resources(config)
    records, store = resources["records"], resources["store"]
    current = records.current(label(RAW_POOL, dataset))
    if current is None:
        return None
    record = records.get(current)

    def rows(table: str, columns: list[str] | None = None) -> _Rows:
        for batch in store.scan(table, columns, version=record.tables[table].version):
            yield from batch.to_pylist()

    samples, refused = pool_table(dataset), quarantine_table(dataset)

    def unusable() -> _Rows:
        yield from rows(refused)
        for model in config.models:
            yield from _not_rendered(records, store, dataset, model)

    accounts = {"rows read": 0, "reasons": {}, "unread fields": {}, **record.about}
    accounts = {key: value for key, value in accounts.items() if key in _ACCOUNTS}
    return {
        "dataset": dataset,
        "made": True,
        "faults": [],
        "accounts": accounts,
        "sources": _by_source(rows(samples, ["origins"]), rows(refused), accounts),
        "rows": _first(unusable() if set_aside else rows(samples), limit),
    }


def _not_rendered(records: Records, store: Store, dataset: str, model: str) -> _Rows:
    """The samples that a model's template can't render truly, with their first place and why."""
    from assets.encoding import set_aside
    from assets.keys import ACTIVATIONS, RAW_POOL, both, label
    from assets.raw_pool import pool_table
    from resources.encoding_tables import pool_population
    from resources.snapshot import Snapshot

    pool, encoded = label(RAW_POOL, dataset), label(ACTIVATIONS, both(dataset, model))
    if records.current(encoded) is None:
        return
    read = Snapshot.of(store, records, [pool, encoded])
    meaning = str(read.record(encoded).about["encoder"])
    stored = read.table(encoded, pool_population(dataset).activations_table(meaning))
    samples = read.table(pool, pool_table(dataset))
    found = set_aside(stored, samples)
    ids = found.column("sample_id").to_pylist()
    origins = samples.rows(["origins"], ids).column("origins").to_pylist()
    for key, why, places in zip(ids, found.column("set_aside").to_pylist(), origins, strict=True):
        first = places[0]
        yield {
            "source": first["source"],
            "file": first["file"],
            "line": first["line"],
            "reason": f"template of '{model}': {why}",
            "sample_id": key,
        }


def _previewed(config: Config, dataset: str, set_aside: bool, limit: int) -> dict[str, Any]:
    """The same of the sources as they are now; nothing is kept."""
    import pyarrow.parquet as pq

    from assets.raw_pool import source_rows
    from mona.pool import build_pool
    from orchestration.definitions import build_resources
    from resources.engine import progress_bar

    spec = config.datasets[dataset]
    sources = build_resources(config)["sources"]
    withdrawn = sources.ledger.forbidden()
    present = [source for source in spec.sources if not withdrawn.covers(source.name)]
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar(f"reading {dataset}", None, "rows") as advance,
    ):
        result = build_pool(
            [source_rows(dataset, source, sources, {}) for source in present],
            Path(folder),
            max_bad_rows=spec.max_bad_rows,
            withdrawn=withdrawn,
            progress=advance,
            refuse=False,
        )

        def rows(parquet: Path, columns: list[str] | None = None) -> _Rows:
            with pq.ParquetFile(parquet) as file:
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()

        passed_over = [
            name
            for source in present
            for name in sources.passed_over(source, f"datasets.{dataset}.sources.{source.name}")
        ]
        accounts = {**result.accounts(), "files passed over": len(passed_over)}
        return {
            "dataset": dataset,
            "made": False,
            "faults": list(result.faults),
            "accounts": accounts,
            "sources": _by_source(
                rows(result.parquet, ["origins"]), rows(result.quarantine), accounts
            ),
            "rows": _first(rows(result.quarantine if set_aside else result.parquet), limit),
        }


_ACCOUNTS = (
    "rows",
    "rows read",
    "set aside",
    "reasons",
    "merged",
    "not preferred",
    "withdrawn",
    "not drawn",
    "unread fields",
    "files passed over",
)


def _by_source(
    samples: Iterable[dict[str, Any]], refused: Iterable[dict[str, Any]], accounts: dict[str, Any]
) -> list[dict[str, Any]]:
    """By provenance label, the largest first: samples, rows set aside, and unread fields."""
    labels = (sorted({origin["source"] for origin in row["origins"]}) for row in samples)
    kept = Counter(chain.from_iterable(labels))
    bad = Counter(row["source"] for row in refused)
    unread = accounts["unread fields"]
    return [
        {
            "source": label,
            "samples": kept[label],
            "set aside": bad[label],
            "nothing reads": ", ".join(
                f"{field} ({count:,})" for field, count in unread.get(label, {}).items()
            ),
        }
        for label in sorted({*kept, *bad, *unread}, key=lambda label: (-kept[label], label))
        if kept[label] or bad[label] or unread.get(label)
    ]


def _first(rows: _Rows, limit: int) -> list[dict[str, Any]]:
    """The first rows; a sample's with its first origin beside it."""
    found = []
    # Closed here, not by the collector: a reader may hold a file that is about to go.
    with closing(rows):
        for row in islice(rows, limit):
            if "origins" in row:
                row = {**row["origins"][0], **row}
            found.append(row)
    return found


def _one_line(messages: list[dict[str, Any]], width: int = 160) -> str:
    text = " | ".join(" ".join(message["content"].split()) for message in messages)
    return text if len(text) <= width else f"{text[:width]}..."
