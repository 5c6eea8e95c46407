"""Giving disk back: what nothing refers to any more, found first and removed when asked.

What must stay is what `orchestration.verify.audited` says: all that is current for a configured
name, all that a model may have been trained on, and everything above. The rest goes: tables
and SAEs that only other records name, table versions that none needs, and, once everything
configured is fresh, encodings of samples that left their pool and what a crash left behind.
Configured is what any configuration over this home says (`orchestration.configurations`).
Records stay, so lineage still answers.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg
import pyarrow.compute as pc

from assets.encoding import FORGET_TAG
from assets.keys import ACTIVATIONS, RAW_POOL, SAE_CODES, both, label
from assets.raw_pool import pool_table
from mona.errors import RequestError, WorkError
from orchestration.config import Config
from orchestration.configurations import others
from orchestration.definitions import build_definitions
from orchestration.home import alone, run_here
from orchestration.planner import Choice, Standing, states, steps
from orchestration.taints import readable
from orchestration.verify import audited
from resources.purge import remove_rest, versions
from resources.records import Record, Records
from resources.snapshot import Snapshot
from resources.store import Store

_PIN = "record-"


@dataclass(frozen=True, slots=True)
class Reclaimable:
    """Something nothing refers to: a table, the old versions of one, rows of one, or a folder
    under home (its path there), why, and the bytes it takes. Rows free none by themselves: the
    table is written anew without them, and the version with them goes once no subset stands on
    it."""

    kind: Literal["table", "versions", "rows", "folder"]
    name: str
    why: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What can go and which asset partitions are retired (label -> whether the audit keeps what
    they made). unfinished: an asset partition that is not fresh, because of which what a step
    may go on from was left out; None when all is fresh."""

    items: list[Reclaimable]
    retired: dict[str, bool]
    unfinished: str | None


def retired(config: Config, records: Records) -> dict[str, bool]:
    """Asset partitions with a current record whose names are configured no more -> whether the
    audit keeps what they made."""
    pointers = records.pointers()
    try:
        gone = sorted(pointers.keys() - _configured(config))
    except RequestError:
        return {}  # another configuration can't be read: what is nobody's is not known
    if not gone:
        return {}
    needed = _needed(config, records)
    return {asset: pointers[asset] in needed for asset in gone}


def plan(standing: Standing, records: Records, store: Store) -> Plan:
    """What `reclaim` would remove; nothing is changed."""
    config = standing.config
    needed = _needed(config, records)
    known = readable(records)
    unfinished = _unfinished(standing)
    items = [
        *_tables(store, needed, known, all_fresh=unfinished is None),
        *_saes(config, needed, known),
        *(_scratch(config) if unfinished is None else ()),
        *(item for _, item in (_departed(config, records, store) if unfinished is None else ())),
    ]
    return Plan(items, retired(config, records), unfinished)


def reclaim(
    standing: Standing, instance: dg.DagsterInstance, records: Records, store: Store
) -> Plan:
    """Removes what `plan` finds once nothing else is at work, and returns it.

    Cut short, it is completed by asking again. WorkError when a run is at work or a withdrawal
    is not complete.
    """
    config = standing.config
    pending = records.ledger.unfinished()
    if pending:
        raise WorkError(f"withdrawal {pending[0]} is not complete: mona run completes it")
    forgotten = _forget_departed(standing, instance, records, store)
    with alone(config, instance, store, "gc"):
        standing.forget()  # a run may have ended since it was read
        found = plan(standing, records, store)
        found.items.extend(forgotten)
        needed = _needed(config, records)
        for asset, kept in found.retired.items():
            if not kept:
                records.retire(asset)
        for item in found.items:
            if item.kind == "table":
                store.drop(item.name)
            elif item.kind == "rows":
                continue  # a step's work, done above
            elif item.kind == "versions":
                _settle_pins(store, item.name, needed)
                remove_rest(store, item.name, {})
            else:
                _remove(config.home / item.name)
    return found


def _configured(config: Config) -> set[str]:
    """The asset partitions of every configuration over this home."""
    return {
        label(key, step.partition)
        for known in (config, *others(config))
        for step in steps(known, Choice().checked(known))
        for key in step.keys
    }


def _unfinished(standing: Standing) -> str | None:
    """The first asset partition, of any configuration over this home, that is not fresh."""
    for config in (standing.config, *others(standing.config)):
        own = standing
        if config is not standing.config:
            graph = build_definitions(config).resolve_asset_graph()
            own = Standing(standing.instance, graph, config)
        for state in states(own, steps(config, Choice().checked(config))):
            if state.status != "fresh":
                return label(state.key, state.partition)
    return None


def _needed(config: Config, records: Records) -> dict[str, Record]:
    """The records whose tables and files must stay, by digest."""
    configured = _configured(config)
    current = [digest for asset, digest in records.pointers().items() if asset in configured]
    return dict(audited(readable(records), current))


def _tables(
    store: Store,
    needed: Mapping[str, Record],
    known: Mapping[str, Record],
    *,
    all_fresh: bool,
) -> Iterator[Reclaimable]:
    kept: dict[str, set[int]] = {}
    for record in needed.values():
        for name, seal in record.tables.items():
            kept.setdefault(name, set()).add(seal.version)
    recorded = {name for record in known.values() for name in record.tables}
    for name in store.table_names():
        sizes = store.sizes(name)
        if name not in kept:
            if name in recorded or all_fresh:
                why = "only superseded or retired records name it"
                if name not in recorded:
                    why = "no record names it"
                yield Reclaimable("table", name, why, sum(sizes.values()))
            continue
        there = set(versions(store, name))
        stay = kept[name] & there | {store.version(name)}
        gone = there - stay
        if gone:
            files = {path for version in stay for path in store.files(name, version)}
            freed = sum(
                size for path, size in sizes.items() if path not in files | _beside(sizes, stay)
            )
            why = f"{len(gone)} of {len(there)} versions are needed by no record"
            yield Reclaimable("versions", name, why, freed)


def _departed(
    config: Config, records: Records, store: Store
) -> Iterator[tuple[dg.MultiPartitionKey, Reclaimable]]:
    """(its partition, the rows of one of its encodings whose samples are not in the pool)."""
    for dataset, model in itertools.product(config.datasets, config.models):
        partition = both(dataset, model)
        pool = label(RAW_POOL, dataset)
        made = [label(key, partition) for key in (ACTIVATIONS, SAE_CODES)]
        if any(records.current(asset) is None for asset in (pool, *made)):
            continue
        read = Snapshot.of(store, records, [pool, *made])
        there = read.table(pool, pool_table(dataset)).sample_ids
        for asset in made:
            for name in sorted(read.record(asset).tables):
                stored = read.table(asset, name).sample_ids
                gone = len(stored) - int(pc.sum(pc.is_in(stored, there)).as_py() or 0)
                if gone:
                    why = f"{gone} of {len(stored)} rows are of samples that left the pool"
                    yield partition, Reclaimable("rows", name, why, 0)


def _forget_departed(
    standing: Standing, instance: dg.DagsterInstance, records: Records, store: Store
) -> list[Reclaimable]:
    """Runs the encoding steps that have rows of departed samples, told to drop them: so what is
    left is sealed and recorded as any encoding is. Nothing is encoded."""
    if _unfinished(standing) is not None:
        return []
    found = list(_departed(standing.config, records, store))
    job = build_definitions(standing.config).resolve_implicit_global_asset_job_def()
    for partition in dict.fromkeys(partition for partition, _ in found):
        run_here(
            job,
            instance,
            asset_selection=[ACTIVATIONS, SAE_CODES],
            partition_key=partition,
            tags={FORGET_TAG: "departed"},
        )
    return [item for _, item in found]


def _beside(paths: Iterable[str], versions: Collection[int]) -> set[str]:
    """Of a table's files those that Lance keeps beside its versions: tags, and the transaction
    that made each, whose name begins with the version it read."""
    made = tuple(f"_transactions/{version - 1}-" for version in versions)
    return {path for path in paths if path.startswith(("_refs/", *made))}


def _settle_pins(store: Store, name: str, needed: Mapping[str, Record]) -> None:
    """Tags exactly those versions that needed records name."""
    wanted = {
        f"{_PIN}{digest[:16]}": record.tables[name].version
        for digest, record in needed.items()
        if name in record.tables
    }
    tags = store.tags(name)
    there = set(versions(store, name))
    for tag, version in wanted.items():
        if tags.get(tag) != version and version in there:
            store.tag(name, tag, version)
    for tag in tags:
        if tag.startswith(_PIN) and tag not in wanted:
            store.untag(name, tag)


def _saes(
    config: Config, needed: Mapping[str, Record], known: Mapping[str, Record]
) -> Iterator[Reclaimable]:
    """SAEs that records name, but none that is needed."""

    def folders(records: Collection[Record]) -> set[str]:
        files = (path for record in records for path in record.files)
        return {str(Path(path).parent) for path in files if path.startswith("sae/")}

    for folder in sorted(folders(known.values()) - folders(needed.values())):
        path = config.home / folder
        if path.is_dir():
            why = "an SAE that only superseded or retired records name"
            yield Reclaimable("folder", folder, why, _size(path))


def _scratch(config: Config) -> Iterator[Reclaimable]:
    for path in sorted((config.home / "scratch").glob("*")):
        why = "left by work that was cut short and made since"
        yield Reclaimable("folder", f"scratch/{path.name}", why, _size(path))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
