"""Carrying out a withdrawal: samples or a source leave the pools for good, with their text.

The order makes a withdrawal that was cut short harmless and its repetition complete: the
ledger first, so that nothing comes back; then everything that is searched by text (scratch,
exports, Dagster's history); the tables that hold the text last. Afterwards ids, digests,
scores and reasons are left, and what stood on the samples is tainted until it is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc

from mona.errors import RequestError
from mona.pool import Withdrawn
from mona.spec import DatasetSpec
from orchestration.config import Config
from orchestration.home import alone, dagster_home
from orchestration.lineage import uses_of_samples
from orchestration.notices import post
from orchestration.scrub import scrub
from orchestration.taints import mark, readable, standing_on
from orchestration.withdrawal_exports import clean_exports
from orchestration.withdrawal_report import Report
from orchestration.withdrawal_tables import (
    amendments_by,
    clean_tables,
    cuts,
    in_tables,
    text_tables,
    traces_of,
)
from resources.asset_partition import AssetPartition
from resources.exports import Exports
from resources.purge import versions
from resources.records import Record, Records
from resources.store import Store
from resources.withdrawals import Withdrawal, Withdrawals

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Preview:
    """What a withdrawal would take: table -> rows of its newest version that go, or whose text
    is blanked; exported files -> rows; the asset partitions whose current record would be
    tainted, and how many past records. standing: what the ledger says of it already, or ""."""

    withdrawal: str
    samples: int
    standing: str
    tables: dict[str, int]
    exports: dict[str, int]
    tainted: list[str]
    past: int


def of_samples(
    ids: Iterable[str], reason: str, ledger: Withdrawals, store: Store, known: Mapping[str, Record]
) -> Withdrawal:
    """The withdrawal of samples; nothing is changed yet. known: every record by digest.
    RequestError naming the ids that were never in a pool or among a target's rows."""
    asked = sorted(set(ids))
    if not asked:
        raise RequestError("no sample id is given")
    before = ledger.get(Withdrawal(reason, tuple(asked)).name)
    if before is not None:
        return before
    samples = in_tables(store, "dataset", asked)
    examples = in_tables(store, "target", asked)
    found = {key for ids in (*samples.values(), *examples.values()) for key in ids}
    found |= {key for withdrawal in ledger.all() for key in withdrawal.all_ids}
    # A pool's old version may be gone while the subset chosen from it is kept.
    for use in uses_of_samples(known, store, [key for key in asked if key not in found]):
        dataset, _ = AssetPartition.parse(use.subset).pair
        samples[dataset] = sorted({*samples.get(dataset, []), use.sample_id})
        found.add(use.sample_id)
    unknown = [key for key in asked if key not in found]
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise RequestError(
            f"never in a pool: {', '.join(unknown[:_NAMED])}{more}; nothing was changed"
        )
    return Withdrawal(
        reason,
        ids=tuple(asked),
        datasets=tuple(sorted(samples)),
        samples=samples,
        examples=examples,
        tainted=standing_on(known, store, samples, examples),
    )


def of_source(
    source: str,
    datasets: Mapping[str, DatasetSpec],
    reason: str,
    ledger: Withdrawals,
    store: Store,
    known: Mapping[str, Record],
) -> Withdrawal:
    """The withdrawal of a source, or of one label NAME/folder: its pair leaves every row, and a
    row goes when its last pair does. RequestError for a source that no pool ever had."""
    before = ledger.get(Withdrawal(reason, source=source).name)
    if before is not None:
        return before
    every = Withdrawn(sources=(*ledger.forbidden().sources, source))
    this = Withdrawn(sources=(source,))
    touched = {
        name
        for name, spec in datasets.items()
        if any(this.covers(given.name) for given in spec.sources)
    }
    samples: dict[str, list[str]] = {}
    for name, kind in text_tables(store, "dataset"):
        dataset = kind.owner(name)
        going: dict[str, bool] = {}
        for version in reversed(versions(store, name)):
            for batch in store.scan(name, ["sample_id", "origins"], version=version):
                for row in batch.to_pylist():
                    labels = [origin["source"] for origin in row["origins"]]
                    if any(map(this.covers, labels)):
                        touched.add(dataset)
                    # The newest version that has a row says under which pairs it stands.
                    going.setdefault(row["sample_id"], all(map(every.covers, labels)))
        gone = sorted(key for key, goes in going.items() if goes)
        if gone:
            samples[dataset] = gone
    if not touched:
        raise RequestError(f"no pool ever had a source called '{source}'; nothing was changed")
    return Withdrawal(
        reason,
        source=source,
        datasets=tuple(sorted(touched)),
        samples=samples,
        tainted=standing_on(known, store, samples, {}),
    )


def ever_stored(store: Store, sample_id: str) -> bool:
    """Whether any version of a pool or of a target's rows holds a sample."""
    return any(in_tables(store, whose, [sample_id]) for whose in ("dataset", "target"))


def preview(withdrawal: Withdrawal, config: Config, records: Records, store: Store) -> Preview:
    """What `carry_out` would take; nothing is changed."""
    nothing = Report(withdrawal.name, 0)
    traces = traces_of(store, withdrawal, nothing)
    tables: dict[str, int] = {}
    for name, _, cut in cuts(store, withdrawal, traces, nothing):
        columns = [c for c in cut.columns if c in store.open(name).schema.names]
        batches = store.scan(name, columns) if len(columns) == len(cut.columns) else ()
        rows = sum(pc.sum(cut.found(batch)).as_py() or 0 for batch in batches)
        if rows:
            tables[name] = rows
    exports = {
        path: len(ids)
        for export in Exports(config.home).all()[0]
        if (ids := set(withdrawal.samples.get(export.dataset, [])) & set(export.sample_ids))
        for path, file in export.files.items()
        if file.kind != "settings"
    }
    pointers = records.pointers()
    current = {a for d, a in withdrawal.tainted.items() if pointers.get(a) == d}
    standing = ""
    if records.ledger.get(withdrawal.name) is not None:
        open_ = withdrawal.name in records.ledger.unfinished()
        standing = (
            f", begun {withdrawal.at[:10]} and not complete"
            if open_
            else f", complete since {withdrawal.at[:10]}"
        )
    return Preview(
        withdrawal.name,
        len(withdrawal.all_ids),
        standing,
        tables,
        exports,
        sorted(current),
        len(withdrawal.tainted) - len(current),
    )


def finish_pending(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    records: Records,
    store: Store,
) -> None:
    """Completes withdrawals that were cut short. WorkError where one is under way."""
    for withdrawal in records.ledger.pending():
        found = partial(_noted, records.ledger, withdrawal.name)
        carry_out(found, config, definitions, instance, records, store)


def _noted(ledger: Withdrawals, name: str, _: Mapping[str, Record]) -> Withdrawal:
    found = ledger.get(name)
    assert found is not None
    return found


def carry_out(
    asked: Callable[[Mapping[str, Record]], Withdrawal],
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    records: Records,
    store: Store,
) -> Report:
    """Removes what a withdrawal names, everywhere; asked again it completes what is left.

    `asked` is called, with every record by digest, once nothing else is at work: what a run that
    ends meanwhile made of the samples is found too. WorkError when a run is at work, when Dagster's
    history is in use, or when the configured webhook did not take the notice (the withdrawal is
    complete then).
    """
    with alone(config, instance, store, "withdrawal") as stay_alone:
        known = readable(records)
        withdrawal = asked(known)
        ledger = records.ledger
        if ledger.get(withdrawal.name) is None:
            ledger.open(withdrawal)
        # No step can begin from here on; one that began just before is seen now.
        stay_alone()
        report = Report(withdrawal.name, len(withdrawal.all_ids))
        traces = traces_of(store, withdrawal, report)
        _clear_scratch(config)
        _clear_wheels(config, withdrawal, ledger)
        clean_exports(config, withdrawal, report)
        report.history = scrub(Path(dagster_home(config)), withdrawal.all_ids, traces)
        clean_tables(withdrawal, records, known, store, traces, report)
        tainted = mark(instance, definitions, records)
        report.tainted = [a for a in tainted if a in withdrawal.tainted.values()]
        ledger.close(
            withdrawal.name,
            {
                "tables": report.tables,
                "by_hand": report.by_hand,
                "amendments": amendments_by(records, withdrawal.name),
            },
        )
    post(
        config,
        {
            "event": "withdrawn",
            "withdrawal": withdrawal.name,
            "reason": withdrawal.reason,
            "samples": report.samples,
            "tainted": report.tainted,
        },
    )
    return report


def _clear_scratch(config: Config) -> None:
    """Staged rows, samples written for a trainer and its checkpoints: all can be made again."""
    for path in (config.home / "scratch").glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _clear_wheels(config: Config, withdrawal: Withdrawal, ledger: Withdrawals) -> None:
    """The downloaded wheels that only withdrawn sources are read from."""
    if withdrawal.source is None:
        return
    gone = ledger.forbidden()
    sources = [source for dataset in config.datasets.values() for source in dataset.sources]
    used = {s.wheel.sha256 for s in sources if s.wheel and not gone.covers(s.name)}
    for target in config.targets.values():
        used |= {f.wheel.sha256 for f in (target.examples, target.test) if f and f.wheel}
    for source in sources:
        if source.wheel and source.wheel.sha256 not in used:
            shutil.rmtree(config.home / "wheels" / source.wheel.sha256, ignore_errors=True)
