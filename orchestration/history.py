"""Dagster's event log, read: which materialisations there were, what they carry, and which
version of each input they say they consumed.

Dagster names an input's version and the newest event of any of its partitions, no more. What
follows from that is worked out here; comparing it with the records is `orchestration.verify`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.describe import RECORD


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """An event of Dagster's log that gave an asset partition a data version."""

    storage_id: int
    version: str


def materialisations(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[Any]:
    """Every materialisation of an asset, newest first."""
    cursor: str | None = None
    while True:
        page = instance.fetch_materializations(key, limit=500, cursor=cursor)
        yield from page.records
        if not page.has_more:
            return
        cursor = page.cursor


def record_of(event: Any) -> str | None:
    """The digest of the provenance record that a materialisation carries."""
    found = event.asset_materialization.metadata.get(RECORD)
    return str(found.value) if found is not None else None


def latest_before(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None, before: int | None
) -> VersionEvent | None:
    """A partition's newest materialisation or observation, under a storage id if one is given."""
    wanted = dg.AssetRecordsFilter(
        asset_key=key,
        asset_partitions=[partition] if partition is not None else None,
        before_storage_id=before,
    )
    made = instance.fetch_materializations(wanted, limit=1).records
    seen = instance.fetch_observations(wanted, limit=1).records
    latest = max([*made, *seen], key=lambda found: found.storage_id, default=None)
    if latest is None:
        return None
    event = latest.asset_materialization or latest.event_log_entry.asset_observation
    assert event is not None
    version = (event.tags or {}).get(DATA_VERSION_TAG)
    return VersionEvent(latest.storage_id, version) if version is not None else None


def stated_version(version: str, partition: str | None, *, observed: bool) -> str:
    """An input's version as an event states it: as it is; that of a partition hashed; and that
    of an observed partition the hash of nothing, so that only the pointer tells them apart."""
    if partition is None:
        return version
    return hashlib.sha256(b"" if observed else version.encode()).hexdigest()
