"""Carrying out a withdrawal: samples or a source leave the pools for good, with their text.

The order makes a withdrawal that was cut short harmless and its repetition complete: the
ledger first, so that nothing comes back; then everything that is searched by text (scratch,
exports, Dagster's history); the tables that hold the text last. Afterwards ids, digests,
scores and reasons are left, and what stood on the samples is tainted until it is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from mona.errors import RequestError, WorkError
from mona.export import held, unfinished, without
from mona.files import file_digest
from mona.pool import Withdrawn, row_digest
from mona.traces import BLANK, Traces
from orchestration.config import Config
from orchestration.home import alone, dagster_home
from orchestration.lineage import uses_of_samples
from orchestration.notices import post
from orchestration.scrub import scrub
from orchestration.taints import mark, readable, standing_on
from orchestration.verify import audited
from resources.exports import ExportFile, Exports
from resources.purge import Cut, remove_rest, rewrite, rows_ever, rows_with, versions
from resources.records import Records, seal_at
from resources.store import Store
from resources.tables import TableKind, Whose, kind_of, tables_about
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
    samples = _in_tables(store, "dataset", asked)
    examples = _in_tables(store, "target", asked)
    found = {key for ids in (*samples.values(), *examples.values()) for key in ids}
    found |= {key for withdrawal in Withdrawals(config.home).all() for key in withdrawal.all_ids}
    known = readable(records)
    # A pool's old version may be gone while the subset chosen from it is kept.
    for use in uses_of_samples(known, store, [key for key in asked if key not in found]):
        dataset = use.subset.partition("[")[2].partition("|")[0]
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
    for name, kind in _text_tables(store, "dataset"):
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
        tainted=standing_on(readable(records), store, samples, {}),
    )


def _text_tables(store: Store, whose: Whose) -> list[tuple[str, TableKind]]:
    """The tables that samples' text is read from: what all others are computed of."""
    return [
        (name, kind)
        for name in store.table_names()
        if (kind := kind_of(name)) is not None and kind.whose == whose and _is_text(kind)
    ]


def _is_text(kind: TableKind) -> bool:
    return kind.holds_text and kind.rows == "go" and kind.key == "sample_id"


def _in_tables(store: Store, whose: Whose, ids: Sequence[str]) -> dict[str, list[str]]:
    """Dataset or target -> those of the ids that any version of its tables holds."""
    found: dict[str, set[str]] = {}
    for name, kind in _text_tables(store, whose):
        keys = {row["sample_id"] for row in rows_ever(store, name, "sample_id", ids, [])}
        if keys:
            found.setdefault(kind.owner(name), set()).update(keys)
    return {owner: sorted(keys) for owner, keys in found.items()}


def ever_stored(store: Store, sample_id: str) -> bool:
    """Whether any version of a pool or of a target's rows holds a sample."""
    return any(_in_tables(store, whose, [sample_id]) for whose in ("dataset", "target"))


def preview(withdrawal: Withdrawal, config: Config, records: Records, store: Store) -> Preview:
    """What `carry_out` would take; nothing is changed."""
    nothing = Report(withdrawal.name, 0)
    traces = _traces(store, withdrawal, nothing)
    tables: dict[str, int] = {}
    for name, _, cut in _cuts(store, withdrawal, traces, nothing):
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
    ledger = Withdrawals(config.home)
    standing = ""
    if ledger.get(withdrawal.name) is not None:
        open_ = withdrawal.name in ledger.unfinished()
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
        _clean_tables(withdrawal, records, store, traces, report)
        tainted = mark(instance, definitions, records)
        report.tainted = [a for a in tainted if a in withdrawal.tainted.values()]
        ledger.close(
            withdrawal.name,
            {
                "tables": report.tables,
                "by_hand": report.by_hand,
                "amendments": _amendments(records, withdrawal.name),
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


def _traces(store: Store, withdrawal: Withdrawal, report: Report) -> Traces:
    """The texts that go, read from every version that still has them; their source files, which
    lie outside, are listed."""
    traces = Traces()
    files: set[str] = set()
    for owned, whose in _owned(withdrawal):
        for name, kind in _text_tables(store, whose):
            ids = owned.get(kind.owner(name), [])
            has = store.open(name).schema.names
            texts = [column for column in kind.of("text") if column in has]
            origins = [column for column in ("origins",) if column in has]
            for row in rows_ever(store, name, "sample_id", ids, [*texts, *origins]) if ids else ():
                for text in _strings([row[column] for column in texts]):
                    traces.add(text)
                for origin in row.get("origins") or ():
                    line = "" if withdrawal.source else f" line {origin['line']}"
                    files.add(f"{origin['source']}: {origin['file']}{line}")
    report.by_hand += [f"its source still has it, {f}" for f in sorted(files)][:_FILES_NAMED]
    return traces


def _owned(withdrawal: Withdrawal) -> tuple[tuple[Mapping[str, list[str]], Whose], ...]:
    """(owner -> the ids that go, whose they are)."""
    return (withdrawal.samples, "dataset"), (withdrawal.examples, "target")


def _strings(value: Any) -> Iterator[str]:
    """Every string in a row's nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


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
    noted, unreadable = exports.all()
    report.by_hand += unreadable
    for export in noted:
        ids = set(withdrawal.samples.get(export.dataset, [])) & set(export.sample_ids)
        # Every file, also after one that is left to a person.
        clean = [_clean_export(Path(p), f, ids, report) for p, f in export.files.items() if ids]
        if ids and all(clean):
            exports.settle(export, [key for key in export.sample_ids if key not in ids])


def _clean_export(path: Path, file: ExportFile, ids: set[str], report: Report) -> bool:
    """Whether nothing of the samples is left in a file of an export."""
    try:
        if file.sha256 is None:
            # The writing was cut short: what it had written lies beside the file's place.
            unfinished(path).unlink(missing_ok=True)
            if not path.exists():
                return True
        if file.kind == "settings":
            return True
        if not path.is_file():
            report.by_hand.append(f"export, no longer there: {path}")
            return False
        if file.sha256 in (None, file_digest(path)):
            taken = without(path, file.kind, ids)
            if taken:
                report.exports[str(path)] = report.exports.get(str(path), 0) + taken
        elif held(path, file.kind, ids):
            report.by_hand.append(f"export, changed since it was written: {path}")
            return False
    except (WorkError, OSError) as error:
        # Nothing may keep a withdrawal from its end: a person has to look at this one.
        report.by_hand.append(f"export, look for its rows yourself: {error}")
        return False
    return True


def _cuts(
    store: Store, withdrawal: Withdrawal, traces: Traces, report: Report
) -> list[tuple[str, TableKind, Cut]]:
    """What goes from each table. Those that hold the text come last, since an interrupted
    withdrawal needs it again."""
    names = store.table_names()
    report.by_hand += [
        f"table of a kind that is not declared: {name}" for name in names if kind_of(name) is None
    ]
    found: list[tuple[str, TableKind, Cut]] = []
    for owned, whose in _owned(withdrawal):
        for owner, ids in owned.items():
            for name, kind in tables_about(names, whose, owner):
                if kind.rows == "go" and kind.key == "sample_id":
                    found.append((name, kind, rows_with("sample_id", ids)))
    gone = withdrawal.samples or withdrawal.examples
    declared = [(name, known) for name in names if (known := kind_of(name)) is not None]
    for name, kind in declared if gone else ():
        if kind.rows == "stay":
            mine = withdrawal.samples if kind.whose == "dataset" else withdrawal.examples
            asked = set(mine.get(kind.owner(name), []))
            found += [(name, kind, _blanked(c, asked, traces)) for c in kind.of("text")]
    if withdrawal.source is not None:
        this = Withdrawn(sources=(withdrawal.source,))
        for dataset in withdrawal.datasets:
            for name, kind in tables_about(names, "dataset", dataset):
                if kind.key == "source":
                    labels = sorted(filter(this.covers, _labels(store, name)))
                    found += [(name, kind, rows_with("source", labels))] if labels else []
    return sorted(found, key=lambda cut: _is_text(cut[1]))


def _blanked(column: str, asked: Collection[str], traces: Traces) -> Cut:
    """Text in rows that stay: of withdrawn samples, and where it says a withdrawn text again, as
    the answer does of a model that was tuned on it. What was measured stays."""

    def found(batch: pa.RecordBatch) -> pa.Array:
        ids, answers = batch.column("sample_id").to_pylist(), batch.column(column).to_pylist()
        return pa.array(
            [
                answer is not None
                and answer != BLANK
                and (sample in asked or traces.shown_in(answer))
                for sample, answer in zip(ids, answers, strict=True)
            ],
            pa.bool_(),
        )

    return Cut(("sample_id", column), found, blank=column)


def _labels(store: Store, name: str) -> set[str]:
    return {
        str(label)
        for version in versions(store, name)
        for batch in store.scan(name, ["source"], version=version)
        for label in batch.column(0).unique().to_pylist()
    }


def _clean_tables(
    withdrawal: Withdrawal, records: Records, store: Store, traces: Traces, report: Report
) -> None:
    """Writes every table anew without what goes, and amends the records that name it."""
    known = readable(records)
    kept = {digest for digest, _ in audited(known, records.pointers().values())}
    for name, kind, cut in _cuts(store, withdrawal, traces, report):
        pinned = [digest for digest in kept if name in known[digest].tables]
        keep = {known[digest].tables[name].version for digest in pinned}
        moved = rewrite(store, name, cut, keep | set(store.tags(name).values()))
        seals = {new: seal_at(store, name, new) for new in moved.values()}
        for digest, record in list(known.items()):
            seal = record.tables.get(name)
            if seal is not None and seal.version in moved:
                gone, removed = _gone(store, name, kind, seal.version, cut)
                new = seals[moved[seal.version]]
                records.amend(digest, name, new, gone=gone, removed=removed, by=withdrawal.name)
                known[digest] = records.get(digest)
        there = set(versions(store, name))
        for digest in pinned:
            version = known[digest].tables[name].version
            if version in there:
                store.tag(name, f"record-{digest[:16]}", version)
        remove_rest(store, name, moved)
        if moved:
            report.tables[name] = report.tables.get(name, 0) + len(moved)


def _gone(
    store: Store, name: str, kind: TableKind, version: int, cut: Cut
) -> tuple[list[str], dict[str, str]]:
    """(key of every row that goes from a version, of pool rows sample id -> row digest)."""
    if cut.blank is not None or kind.key is None:
        return [], {}
    is_pool = kind.name == "pool"
    columns = ["sample_id", "origins"] if is_pool else [kind.key]
    keys, digests = [], {}
    for batch in store.scan(name, columns, version=version):
        for row in batch.filter(cut.found(batch)).to_pylist():
            keys.append(str(row[kind.key]))
            if is_pool:
                digests[row["sample_id"]] = row_digest(row["sample_id"], row["origins"]).hex()
    return keys, digests


def _amendments(records: Records, withdrawal: str) -> dict[str, list[str]]:
    """Record -> the digests of the steps by which a withdrawal amended it."""
    found: dict[str, list[str]] = {}
    for digest in records.amended():
        amendment = records.amendment(digest)
        steps = amendment.steps if amendment is not None else []
        by = [step.digest for step in steps if step.withdrawal == withdrawal]
        if by:
            found[digest] = by
    return found
