"""The tables of a withdrawal: where its samples are, what goes from each table, and the tables
written anew without it, with the records that name them amended.

Which kinds there are and what their columns hold is `resources.tables`; rewriting one table's
versions is `resources.purge`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from mona.pool import Withdrawn, row_digest
from mona.traces import BLANK, Traces
from orchestration.verify import audited
from orchestration.withdrawal_report import Report
from resources.purge import Cut, remove_rest, rewrite, rows_ever, rows_with, versions
from resources.records import Record, Records, seal_at
from resources.store import Store
from resources.tables import TableKind, Whose, kind_of, tables_about
from resources.withdrawals import Withdrawal

_FILES_NAMED = 100


def text_tables(store: Store, whose: Whose) -> list[tuple[str, TableKind]]:
    """The tables that samples' text is read from: what all others are computed of."""
    return [
        (name, kind)
        for name in store.table_names()
        if (kind := kind_of(name)) is not None and kind.whose == whose and _is_text(kind)
    ]


def _is_text(kind: TableKind) -> bool:
    # What grows is computed of these, with a word here and there in a reason.
    return kind.holds_text and kind.rows == "go" and kind.key == "sample_id" and not kind.grows


def in_tables(store: Store, whose: Whose, ids: Sequence[str]) -> dict[str, list[str]]:
    """Dataset or target -> those of the ids that any version of its tables holds."""
    found: dict[str, set[str]] = {}
    for name, kind in text_tables(store, whose):
        keys = {row["sample_id"] for row in rows_ever(store, name, "sample_id", ids, [])}
        if keys:
            found.setdefault(kind.owner(name), set()).update(keys)
    return {owner: sorted(keys) for owner, keys in found.items()}


def traces_of(store: Store, withdrawal: Withdrawal, report: Report) -> Traces:
    """The texts that go, read from every version that still has them; their source files, which
    lie outside, are listed."""
    traces = Traces()
    files: set[str] = set()
    for owned, whose in _owned(withdrawal):
        for name, kind in text_tables(store, whose):
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


def cuts(
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


def clean_tables(
    withdrawal: Withdrawal,
    records: Records,
    known: dict[str, Record],
    store: Store,
    traces: Traces,
    report: Report,
) -> None:
    """Writes every table anew without what goes, and amends the records that name it, in `known`
    (every record by digest) too."""
    kept = {digest for digest, _ in audited(known, records.pointers().values())}
    for name, kind, cut in cuts(store, withdrawal, traces, report):
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


def amendments_by(records: Records, withdrawal: str) -> dict[str, list[str]]:
    """Record -> the digests of the steps by which a withdrawal amended it."""
    found: dict[str, list[str]] = {}
    for digest in records.amended():
        amendment = records.amendment(digest)
        steps = amendment.steps if amendment is not None else []
        by = [step.digest for step in steps if step.withdrawal == withdrawal]
        if by:
            found[digest] = by
    return found
