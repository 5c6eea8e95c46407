"""Carrying out a withdrawal: samples or a source leave the pools for good, with their text.

The order makes a withdrawal that was cut short harmless and its repetition complete: the
ledger first, so that nothing comes back; then everything that is searched by text (scratch,
exports, Dagster's history); the tables that hold the text last. Afterwards ids, digests,
scores and reasons are left, and what stood on the samples is tainted until it is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.raw_pool import pool_table, quarantine_table
from assets.targets import test_rows_table
from mona.errors import RequestError, WorkError
from mona.export import held, without
from mona.files import file_digest
from mona.pool import Withdrawn, row_digest
from mona.traces import BLANK, Traces
from orchestration.config import Config
from orchestration.home import alone, dagster_home
from orchestration.lineage import uses_of_sample
from orchestration.notices import post
from orchestration.scrub import scrub
from orchestration.taints import mark, readable, standing_on
from orchestration.verify import audited
from resources.exports import Exports
from resources.purge import Cut, remove_rest, rewrite, rows_ever, rows_with, versions
from resources.records import Records, seal_at
from resources.store import Store
from resources.withdrawals import Withdrawal, Withdrawals

_NAMED = 5
_FILES_NAMED = 100


@dataclass(slots=True)
class Report:
    """What was removed, and what is left for a person: the withdrawal's name and how many samples
    it took, table -> versions written anew, exported files -> rows taken out, strings blanked in
    Dagster's history, and what can't be reached from here."""

    withdrawal: str
    samples: int
    tables: dict[str, int] = field(default_factory=dict)
    exports: dict[str, int] = field(default_factory=dict)
    history: int = 0
    by_hand: list[str] = field(default_factory=list)
    tainted: list[str] = field(default_factory=list)


def of_samples(
    ids: Iterable[str], reason: str, config: Config, records: Records, store: Store
) -> Withdrawal:
    """The withdrawal of samples; nothing is changed yet. RequestError naming the ids that were
    never in a pool or among a target's rows."""
    asked = sorted(set(ids))
    if not asked:
        raise RequestError("no sample id is given")
    before = Withdrawals(config.home).get(Withdrawal(reason, tuple(asked)).name)
    if before is not None:
        return before
    samples = _in_tables(store, "pool.", asked)
    examples = _in_tables(store, "examples.", asked)
    for target, found in _in_tables(store, "test_rows.", asked).items():
        examples[target] = sorted({*found, *examples.get(target, [])})
    known = {key for found in (*samples.values(), *examples.values()) for key in found}
    known |= {key for withdrawal in Withdrawals(config.home).all() for key in withdrawal.all_ids}
    unknown = []
    for key in asked:
        if key in known:
            continue
        # A pool's old version may be gone while the subset chosen from it is kept.
        uses = uses_of_sample(records, store, key)
        for dataset in sorted({use.subset.partition("[")[2].partition("|")[0] for use in uses}):
            samples.setdefault(dataset, []).append(key)
        if not uses:
            unknown.append(key)
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
        tainted=standing_on(records, store, samples, examples),
    )


def of_source(
    source: str, reason: str, config: Config, records: Records, store: Store
) -> Withdrawal:
    """The withdrawal of a source, or of one label NAME/folder: its pair leaves every row, and a
    row goes when its last pair does. RequestError for a source that no pool ever had."""
    ledger = Withdrawals(config.home)
    before = ledger.get(Withdrawal(reason, source=source).name)
    if before is not None:
        return before
    every = Withdrawn(sources=(*ledger.forbidden().sources, source))
    this = Withdrawn(sources=(source,))
    touched = {
        name
        for name, spec in config.datasets.items()
        if any(this.covers(given.name) for given in spec.sources)
    }
    samples: dict[str, list[str]] = {}
    for name in store.table_names():
        if not name.startswith("pool."):
            continue
        dataset = name.removeprefix("pool.")
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
        tainted=standing_on(records, store, samples, {}),
    )


def _in_tables(store: Store, prefix: str, ids: Sequence[str]) -> dict[str, list[str]]:
    """Dataset or target -> those of the ids that any version of its table holds."""
    found = {}
    for name in store.table_names():
        if name.startswith(prefix):
            keys = {row["sample_id"] for row in rows_ever(store, name, "sample_id", ids, [])}
            if keys:
                found[name.removeprefix(prefix)] = sorted(keys)
    return found


def finish_pending(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    records: Records,
    store: Store,
) -> None:
    """Completes withdrawals that were cut short. WorkError where one is under way."""
    for name in [withdrawal.name for withdrawal in Withdrawals(config.home).pending()]:
        found = partial(_noted, config, name)
        carry_out(found, config, definitions, instance, records, store)


def _noted(config: Config, name: str) -> Withdrawal:
    found = Withdrawals(config.home).get(name)
    assert found is not None
    return found


def carry_out(
    asked: Callable[[], Withdrawal],
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    records: Records,
    store: Store,
) -> Report:
    """Removes what a withdrawal names, everywhere; asked again it completes what is left.

    `asked` is called once nothing else is at work: what a run that ends meanwhile made of the
    samples is found too. WorkError when a run is at work, when Dagster's history is in use, or
    when the configured webhook did not take the notice (the withdrawal is complete then).
    """
    with alone(config, instance, store, "withdrawal") as stay_alone:
        withdrawal = asked()
        ledger = Withdrawals(config.home)
        if ledger.get(withdrawal.name) is None:
            ledger.open(withdrawal)
        # No step can begin from here on; one that began just before is seen now.
        stay_alone()
        report = Report(withdrawal.name, len(withdrawal.all_ids))
        traces = _traces(store, withdrawal, report)
        _clear_scratch(config)
        _clear_wheels(config, withdrawal)
        _clean_exports(config, withdrawal, report)
        report.history = scrub(Path(dagster_home(config)), withdrawal.all_ids, traces)
        for name, cut in _tables(store, withdrawal, traces):
            _clean_table(withdrawal, records, store, name, cut, report)
        tainted = mark(instance, definitions, records)
        report.tainted = [a for a in tainted if a in withdrawal.tainted.values()]
        ledger.close(withdrawal.name, {"tables": report.tables, "by_hand": report.by_hand})
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


def _traces(store: Store, withdrawal: Withdrawal, report: Report) -> Traces:
    """The texts that go, read from every version that still has them; their source files, which
    lie outside, are listed."""
    traces = Traces()
    files: set[str] = set()
    for dataset, ids in withdrawal.samples.items():
        for row in _stored_rows(store, pool_table(dataset), ids, ["messages", "origins"]):
            for message in row["messages"]:
                traces.add(message["content"])
            for origin in row["origins"]:
                line = "" if withdrawal.source else f" line {origin['line']}"
                files.add(f"{origin['source']}: {origin['file']}{line}")
    for target, ids in withdrawal.examples.items():
        for name in (f"examples.{target}", test_rows_table(target)):
            for row in _stored_rows(store, name, ids, ["messages", "question", "references"]):
                turns = [message["content"] for message in row["messages"]]
                for text in (*turns, row["question"], *row["references"]):
                    traces.add(text)
    report.by_hand += [f"its source still has it, {f}" for f in sorted(files)][:_FILES_NAMED]
    return traces


def _stored_rows(
    store: Store, name: str, ids: Sequence[str], columns: Sequence[str]
) -> Iterable[dict[str, Any]]:
    return rows_ever(store, name, "sample_id", ids, columns) if store.exists(name) else ()


def _clear_scratch(config: Config) -> None:
    """Staged rows, samples written for a trainer and its checkpoints: all can be made again."""
    for path in (config.home / "scratch").glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _clear_wheels(config: Config, withdrawal: Withdrawal) -> None:
    """The downloaded wheels that only withdrawn sources are read from."""
    if withdrawal.source is None:
        return
    gone = Withdrawals(config.home).forbidden()
    sources = [source for dataset in config.datasets.values() for source in dataset.sources]
    used = {s.wheel.sha256 for s in sources if s.wheel and not gone.covers(s.name)}
    for target in config.targets.values():
        used |= {f.wheel.sha256 for f in (target.examples, target.test) if f and f.wheel}
    for source in sources:
        if source.wheel and source.wheel.sha256 not in used:
            shutil.rmtree(config.home / "wheels" / source.wheel.sha256, ignore_errors=True)


def _clean_exports(config: Config, withdrawal: Withdrawal, report: Report) -> None:
    """Takes the rows out of exports that are as written; others are for a person."""
    exports = Exports(config.home)
    for export in exports.all():
        ids = set(withdrawal.samples.get(export.dataset, [])) & set(export.sample_ids)
        if not ids:
            continue
        files = {Path(path): digest for path, digest in export.files.items()}
        for path, digest in files.items():
            if not path.is_file():
                report.by_hand.append(f"export, no longer there: {path}")
            elif file_digest(path) == digest:
                taken = without(path, ids)
                if taken:
                    report.exports[str(path)] = taken
            elif _may_hold(path, ids):
                report.by_hand.append(f"export, changed since it was written: {path}")
        if all(path.is_file() and not _may_hold(path, ids) for path in files):
            left = [key for key in export.sample_ids if key not in ids]
            exports.remember(export.record, export.dataset, left, list(files))


def _may_hold(path: Path, ids: set[str]) -> bool:
    try:
        return held(path, ids) > 0
    except (WorkError, KeyError, TypeError):
        return True


def _tables(store: Store, withdrawal: Withdrawal, traces: Traces) -> Iterator[tuple[str, Cut]]:
    """The tables and what goes from each. Those that hold the text come last, since an
    interrupted withdrawal needs it again."""
    names = store.table_names()
    texts: list[tuple[str, Cut]] = []
    if withdrawal.samples or withdrawal.examples:
        for name in names:
            if name.startswith("evaluation."):
                asked = withdrawal.examples.get(name.split(".")[1], [])
                yield name, _answers(set(asked), traces)
    for kind, owners in (("", withdrawal.samples), ("example_", withdrawal.examples)):
        for owner, ids in owners.items():
            prefixes = (f"{kind}activations.{owner}.", f"{kind}codes.{owner}.")
            cut = rows_with("sample_id", ids)
            yield from ((name, cut) for name in names if name.startswith(prefixes))
            own = [f"examples.{owner}", test_rows_table(owner)] if kind else [pool_table(owner)]
            texts += [(name, cut) for name in own if name in names]
    if withdrawal.source is not None:
        this = Withdrawn(sources=(withdrawal.source,))
        for name in map(quarantine_table, withdrawal.datasets):
            labels = sorted(filter(this.covers, _labels(store, name) if name in names else ()))
            if labels:
                yield name, rows_with("source", labels)
    yield from texts


def _answers(asked: set[str], traces: Traces) -> Cut:
    """A model's answers to withdrawn test rows, and those that say a withdrawn text again, as a
    model does that was tuned on it. The values measured stay."""

    def found(batch: pa.RecordBatch) -> pa.Array:
        ids, answers = batch.column("sample_id").to_pylist(), batch.column("answer").to_pylist()
        return pa.array(
            [
                answer is not None
                and answer != BLANK
                and (sample in asked or traces.shown_in(answer))
                for sample, answer in zip(ids, answers, strict=True)
            ],
            pa.bool_(),
        )

    return Cut(("sample_id", "answer"), found, blank="answer")


def _labels(store: Store, name: str) -> set[str]:
    return {
        str(label)
        for version in versions(store, name)
        for batch in store.scan(name, ["source"], version=version)
        for label in batch.column(0).unique().to_pylist()
    }


def _clean_table(
    withdrawal: Withdrawal,
    records: Records,
    store: Store,
    name: str,
    cut: Cut,
    report: Report,
) -> None:
    known = readable(records)
    kept = audited(known, records.pointers().values())
    pinned = [digest for digest, record in kept if name in record.tables]
    keep = {known[digest].tables[name].version for digest in pinned}
    moved = rewrite(store, name, cut, keep | set(store.tags(name).values()))
    seals = {new: seal_at(store, name, new) for new in moved.values()}
    for digest, record in known.items():
        seal = record.tables.get(name)
        if seal is not None and seal.version in moved:
            removed = _row_digests(store, name, seal.version, cut)
            tables = {name: seals[moved[seal.version]]}
            records.amend(digest, tables, removed, withdrawal.name)
    for digest in pinned:
        version = records.get(digest).tables[name].version
        if version in versions(store, name):
            store.tag(name, f"record-{digest[:16]}", version)
    remove_rest(store, name, moved)
    if moved:
        report.tables[name] = len(moved)


def _row_digests(store: Store, name: str, version: int, cut: Cut) -> Mapping[str, str]:
    """Sample id -> row digest of the pool rows that go from a version; none of other tables."""
    if not name.startswith("pool."):
        return {}
    return {
        row["sample_id"]: row_digest(row["sample_id"], row["origins"]).hex()
        for batch in store.scan(name, ["sample_id", "origins"], version=version)
        for row in batch.filter(cut.found(batch)).to_pylist()
    }
