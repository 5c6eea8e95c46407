"""Is every recorded fact still true? Stored bytes, decoded rows and Dagster's own history,
each against the provenance records.

Nothing is repaired here: every fault found is one finding that names what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
)

from assets.keys import label
from mona.errors import MonaError
from mona.files import DataFile
from mona.fingerprint import rows_digest
from mona.pool import pool_digest
from mona.sample import from_records, sample_id
from orchestration.config import Config
from orchestration.definitions import build_definitions
from orchestration.history import latest_before, materialisations, record_of, stated_version
from orchestration.home import open_instance
from orchestration.planner import Standing
from orchestration.verify_amendments import amendment_problems
from orchestration.verify_history import history_problems
from orchestration.verify_tables import newest_problems, tag_problems
from resources.asset_partition import AssetPartition
from resources.records import Record, Records, TableSeal, content_at, file_fault, seal_faults
from resources.store import Store
from resources.withdrawals import shown_reasons

# What must stay readable for ever, because a model may have been trained on it.
_AUDITED = ("selection", "finetune", "evaluation")
_PINNED = ("selection", "evaluation")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as recorded: of which record, what, and how."""

    asset: str
    record: str
    what: str
    problem: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A record whose tables were written anew without withdrawn rows: no fault, but to know."""

    asset: str
    record: str
    tables: list[str]
    why: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Every record, read once. unreadable: the findings of those that can't be; known: the
    others by digest; kept: (digest, record) of those that must stay readable; pointers: asset
    partition -> its current record."""

    records: Records
    unreadable: list[Finding]
    known: dict[str, Record]
    kept: list[tuple[str, Record]]
    pointers: dict[str, str]

    @property
    def current(self) -> dict[str, Record]:
        """The current records by digest."""
        return {d: self.known[d] for d in self.pointers.values() if d in self.known}

    @property
    def pinned(self) -> dict[str, Record]:
        """The records whose tables' versions are tagged: what was chosen or measured, and all
        above, by digest."""
        wanted = {d: r for d, r in self.known.items() if r.kind in _PINNED}
        return dict(above(self.known, wanted))


def read_audit(records: Records) -> Audit:
    """What `verify` and `withdrawn` look at."""
    unreadable, known = _read_records(records)
    pointers = records.pointers()
    return Audit(records, unreadable, known, audited(known, pointers.values()), pointers)


def verify(
    standing: Standing | None,
    audit: Audit,
    store: Store,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Finding]:
    """Every finding, in the order of the records' digests; none when all is as recorded.
    standing: None where Dagster's history can't be read, which is a finding of its own."""
    findings = list(audit.unreadable)
    findings += [
        _finding(audit, *problem) for problem in amendment_problems(audit.records, audit.known)
    ]
    for digest, record in audit.kept:
        findings += [
            Finding(record.asset, digest, what, problem)
            for what, problem in _contents(digest, record, audit.records, store)
        ]
        progress(1)
    names = set(store.table_names())
    for problem in (
        *newest_problems(store, audit.current, names),
        *tag_problems(store, audit.pinned, names),
    ):
        findings.append(_finding(audit, *problem))
    if standing is not None:
        findings += _history(standing, audit)
    return findings


def verify_project(
    config: Config, audit: Audit, store: Store, progress: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """`verify` after the files of Dagster's history, which must be whole to be opened."""
    problems, readable = history_problems(config.home / "dagster")
    damaged = [Finding("Dagster's history", "", name, problem) for name, problem in problems]
    if not readable:
        return damaged + verify(None, audit, store, progress)
    with open_instance(config) as instance:
        graph = build_definitions(config).resolve_asset_graph()
        return damaged + verify(Standing(instance, graph, config), audit, store, progress)


def _finding(audit: Audit, digest: str, what: str, problem: str) -> Finding:
    record = audit.known.get(digest)
    return Finding(record.asset if record is not None else "record", digest, what, problem)


def withdrawn(audit: Audit) -> list[Withdrawn]:
    """The audited records that stand as recorded but for rows that were withdrawn."""
    ledger = {found.name: found for found in audit.records.ledger.all()}
    found = []
    for digest, record in audit.kept:
        amendment = audit.records.amendment(digest)
        if amendment is not None:
            by = [ledger[name] for name in amendment.withdrawals if name in ledger]
            found.append(
                Withdrawn(record.asset, digest, sorted(amendment.tables), shown_reasons(by))
            )
    return found


def _read_records(records: Records) -> tuple[list[Finding], dict[str, Record]]:
    """(findings, every record that is what its name says)."""
    findings, known = [], {}
    for digest in records.digests():
        try:
            known[digest] = records.get(digest)
        except (MonaError, ValueError) as error:
            findings.append(Finding("record", digest, f"records/{digest}.json", str(error)))
    for digest, record in known.items():
        for asset, parent in record.inputs.items():
            if parent not in known and not any(f.record == parent for f in findings):
                problem = f"the record of {asset} that it read is missing"
                findings.append(Finding(record.asset, digest, f"records/{parent}.json", problem))
    return findings, known


def audited(known: Mapping[str, Record], current: Iterable[str]) -> list[tuple[str, Record]]:
    """(digest, record) of what must stay readable: all that is current or that a model may have
    been trained on, and everything above."""
    wanted = {digest for digest, record in known.items() if record.kind in _AUDITED}
    return above(known, wanted | {digest for digest in current if digest in known})


def above(known: Mapping[str, Record], digests: Iterable[str]) -> list[tuple[str, Record]]:
    """(digest, record) of these and of everything above them, sorted by digest."""
    wanted, reached = set(digests), set()
    while wanted:
        digest = wanted.pop()
        reached.add(digest)
        wanted |= {p for p in known[digest].inputs.values() if p in known and p not in reached}
    return [(digest, known[digest]) for digest in sorted(reached)]


def _contents(
    digest: str, record: Record, records: Records, store: Store
) -> Iterator[tuple[str, str]]:
    """(what, problem) of a record's tables and files."""
    home = Path(records.home)
    for path, expected in sorted(record.files.items()):
        fault = file_fault(expected, DataFile(home / path).open)
        if fault is not None:
            yield path, fault
    amendment = records.amendment(digest)
    removed = amendment.removed if amendment else {}
    for name, seal in sorted(record.tables.items()):
        faults = [
            (f"table {name} version {seal.version}: {path}", problem)
            for path, problem in seal_faults(store, name, seal)
        ]
        # Rows are decoded only from bytes that are what they were.
        yield from faults or _rows(store, name, seal, record, removed)


def _rows(
    store: Store, name: str, seal: TableSeal, record: Record, removed: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """What the decoded rows say against the seal, the samples' ids and the data version, which
    counts the rows that were withdrawn (`removed`)."""
    what = f"table {name} version {seal.version}"
    rows, content = content_at(store, name, seal.version)
    if (rows, content) != (seal.rows, seal.content):
        yield what, f"{rows} rows of content {content[:16]}, not {seal.content[:16]}"
    if name.startswith("pool."):
        for batch in store.scan(name, ["sample_id", "messages"], version=seal.version):
            for row in batch.to_pylist():
                if sample_id(from_records(row["messages"])) != row["sample_id"]:
                    yield what, f"sample {row['sample_id']}: its text has another id"
    version = record.data_version
    if name.startswith("pool."):
        batches = store.scan(name, ["sample_id", "origins"], version=seal.version)
        version = pool_digest(batches, map(bytes.fromhex, removed.values()))
    if name.startswith("selection."):
        version = rows_digest(store.sample_ids(name, version=seal.version).to_pylist())
    if version != record.data_version:
        yield what, f"its rows are those of data version {version[:16]}, not the recorded one"


def _history(standing: Standing, audit: Audit) -> Iterator[Finding]:
    """Dagster's event log against the records: each materialisation's record, its data version,
    and what it says it consumed; and each current record's materialisation."""
    graph, known = standing.graph, audit.known
    pointers = {**audit.records.retired(), **audit.pointers}
    seen: set[tuple[str, str | None]] = set()
    # Of names that are configured no more, all that is asked is whether they were made.
    others = {dg.AssetKey(AssetPartition.parse(asset).path) for asset in audit.pointers}
    for key in sorted(graph.materializable_asset_keys | others):
        newest: set[str | None] = set()
        for event in materialisations(standing.instance, key):
            digest = record_of(event)
            asset = label(key, event.partition_key)
            seen.add((asset, digest))
            if digest is None or key not in graph.materializable_asset_keys:
                continue
            if digest not in known:
                yield Finding(asset, digest, "record", "Dagster names a record that is not here")
                continue
            record = known[digest]
            if event.partition_key not in newest:
                newest.add(event.partition_key)
                if pointers.get(asset) != digest:
                    problem = "the newest record is not the one of Dagster's last materialisation"
                    yield Finding(asset, digest, "record", problem)
            version = (event.asset_materialization.tags or {}).get(DATA_VERSION_TAG)
            if version != record.data_version:
                problem = f"Dagster's data version is {version}, the record's {record.data_version}"
                yield Finding(asset, digest, "data version", problem)
            yield from _consumed(standing, key, event, digest, record, known)
    for asset, digest in sorted(audit.pointers.items()):
        if (asset, digest) not in seen:
            problem = "Dagster's history has no materialisation with this record"
            yield Finding(asset, digest, "record", problem)


def _consumed(
    standing: Standing,
    key: dg.AssetKey,
    event: Any,
    digest: str,
    record: Record,
    known: Mapping[str, Record],
) -> Iterator[Finding]:
    """Dagster's pointer to each input names the newest event of any partition, so it is only a
    cursor: the event consumed is the partition's last one before it, and its data version must
    hash to the recorded input version."""
    asset = label(key, event.partition_key)
    tags = event.asset_materialization.tags or {}
    parents = dict(standing.parents(key, event.partition_key, with_entries=True))
    graph = standing.graph
    for parent, partition in sorted(parents.items()):
        name = parent.to_user_string()
        pointer = tags.get(f"{INPUT_EVENT_POINTER_TAG_PREFIX}/{name}")
        stated = tags.get(f"{INPUT_DATA_VERSION_TAG_PREFIX}/{name}")
        what = f"input {label(parent, partition)}"
        if pointer is None or pointer == "NULL" or stated is None:
            yield Finding(asset, digest, what, "Dagster's event does not say what it consumed")
            continue
        event_read = latest_before(standing.instance, parent, partition, int(pointer) + 1)
        version = event_read.version if event_read is not None else None
        observed = graph.get(parent).is_external
        if version is None or stated not in (
            version,
            stated_version(version, partition, observed=observed),
        ):
            yield Finding(asset, digest, what, "Dagster's log has no event of the version it names")
            continue
        above = record.inputs.get(label(parent, partition))
        explicit = (
            record.entries.get(label(parent, partition))
            if above is None
            else known[above].data_version
            if above in known
            else None
        )
        if explicit != version:
            problem = f"Dagster says it read {version}, the record {explicit}"
            yield Finding(asset, digest, what, problem)
