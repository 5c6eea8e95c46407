"""The frame that every materialisation shares: what was read, sealed, recorded and shown.

What a step reads is `resources.snapshot`; what it computes is its own module's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from assets.describe import provenance
from assets.keys import label
from resources.records import Record, sealed
from resources.snapshot import Snapshot


def finished(
    read: Snapshot,
    key: dg.AssetKey,
    partition: str | None,
    data_version: str,
    *,
    inputs: Mapping[str, str] | None = None,
    entries: Mapping[str, str] | None = None,
    tables: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
    shown: Mapping[str, Any] | None = None,
    pinned: bool = False,
) -> dg.MaterializeResult[Any]:
    """Records one asset partition and describes it for Dagster.

    inputs: the part of the snapshot that went into it; default: all of it. The tables are sealed
    as they are now, so call it while their locks are held. pinned: whether all it stands on stays
    readable for good.
    """
    record = Record(
        asset=label(key, partition),
        data_version=data_version,
        inputs=dict(read.inputs if inputs is None else inputs),
        entries=dict(entries or {}),
        tables={name: sealed(read.store, name) for name in tables},
        files=dict(files or {}),
        about=dict(about or {}),
    )
    digest = read.records.publish(record)
    if pinned:
        read.records.pin(read.store, digest)
    return dg.MaterializeResult(
        asset_key=key,
        data_version=dg.DataVersion(data_version),
        metadata={**(shown or {}), **provenance(digest, record)},
    )
