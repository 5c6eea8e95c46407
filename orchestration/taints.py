"""What stands on withdrawn samples: found when they are withdrawn, shown until made again.

A taint is of a record, not of an asset: a partition is tainted while its current record is one
that a withdrawal names, so making it again is all it takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from assets.keys import examples as examples_key
from assets.keys import label
from assets.targets import test_rows_table
from mona.errors import MonaError
from orchestration.home import run_here
from resources.asset_partition import AssetPartition
from resources.purge import versions
from resources.records import Record, Records
from resources.store import Store
from resources.tables import tables_about
from resources.withdrawals import shown_reasons

CHECK = "nothing_withdrawn"
_SHOWN = ("selection", "finetune", "evaluation", "leaderboard")


def readable(records: Records) -> dict[str, Record]:
    """Every record that is what its name says; the others are verify's to report."""
    found = {}
    for digest in records.digests():
        try:
            found[digest] = records.get(digest)
        except (MonaError, ValueError):
            continue
    return found


def standing_on(
    known: Mapping[str, Record],
    store: Store,
    samples: Mapping[str, list[str]],
    examples: Mapping[str, list[str]],
) -> dict[str, str]:
    """Digest -> asset partition of every selection, fine-tune and evaluation, past ones too,
    that used one of these samples (by dataset) or of these examples and test rows (by target);
    known: the records by digest.

    A sample and an example are in all that follows from them, the models too. A test row is not:
    a subset is only checked against it, a model only measured on it.
    """
    shown: set[str] = set()
    asked: set[str] = set()
    for target, ids in examples.items():
        for digest, record in known.items():
            if record.asset == label(examples_key(target)):
                shown |= {digest} if _has(store, record, ids, f"examples.{target}") else set()
                asked |= {digest} if _has(store, record, ids, test_rows_table(target)) else set()
    held = {
        digest
        for digest, record in known.items()
        if any(_holds(store, record, where, ids) for where, ids in samples.items())
    }
    users = held | _made_from(known, shown, "prototype")
    newest = users
    while newest:
        newest = _made_from(known, newest) - users
        users |= newest
    # Few-shot examples are read at the measuring itself.
    measured = _made_from(known, shown | asked, "evaluation")
    found = users | measured | _made_from(known, measured) | _made_from(known, asked, "selection")
    return {d: known[d].asset for d in sorted(found) if known[d].kind in _SHOWN}


def _made_from(known: Mapping[str, Record], digests: set[str], wanted: str = "") -> set[str]:
    """The records, of one kind if one is given, that read one of these directly."""
    return {
        digest
        for digest, record in known.items()
        if digests & set(record.inputs.values()) and wanted in ("", record.kind)
    }


def _holds(store: Store, record: Record, dataset: str, ids: list[str]) -> bool:
    if record.kind != "selection":
        return False
    about = tables_about(record.tables, "dataset", dataset)
    return any(_has(store, record, ids, name) for name, _ in about)


def _has(store: Store, record: Record, ids: list[str], name: str) -> bool:
    seal = record.tables.get(name)
    # Of what nothing stands on, a clean-up may have removed the version.
    if seal is None or not store.exists(name) or seal.version not in versions(store, name):
        return False
    held = store.sample_ids(name, version=seal.version)
    return bool(pc.any(pc.is_in(held, pa.array(ids, pa.string()))).as_py())


def taints(records: Records) -> dict[str, str]:
    """Asset partition -> why, of those whose current record stands on withdrawn samples."""
    found: dict[str, list[str]] = {}
    for withdrawal in records.ledger.all():
        for digest, asset in withdrawal.tainted.items():
            if records.current(asset) == digest:
                found.setdefault(asset, []).append(shown_reasons([withdrawal]))
    return {asset: "; ".join(why) for asset, why in found.items()}


def mark(instance: dg.DagsterInstance, definitions: dg.Definitions, records: Records) -> list[str]:
    """Runs the check of every tainted partition, so that Dagster's UI shows it; returns the
    labels of what is tainted.

    A run, since Dagster takes only one evaluation of a check from outside of runs.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    known = definitions.resolve_asset_graph().asset_check_keys
    found = sorted(taints(records))
    due: dict[str, set[dg.AssetCheckKey]] = {}
    for asset in found:
        made = AssetPartition.parse(asset)
        key = dg.AssetCheckKey(dg.AssetKey(made.path), CHECK)
        if key in known and made.partition is not None:
            due.setdefault(made.partition, set()).add(key)
    for partition, keys in due.items():
        run_here(
            job.get_subset(asset_selection=set(), asset_check_selection=keys),
            instance,
            # As a tag, since Dagster finds no partitions of a run of checks alone.
            tags={"dagster/partition": partition},
        )
    return found
