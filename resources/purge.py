"""Taking rows out of every version of a table, their bytes included.

Lance keeps what it deletes: a deletion only hides a row, and old versions keep their files. So
each version to be kept that holds such a row is written anew without it, as a newer version
of the same table (a version number is never used twice), and once whoever names the old ones
names the new ones, the old ones and their files are removed.

Which rows must go, and who is told of the new versions, is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from resources.store import Store

# Token activations make rows of megabytes.
_BATCH_ROWS = 256


def versions(store: Store, name: str) -> list[int]:
    """Every version of a table that exists, ascending."""
    return sorted(int(found["version"]) for found in store.open(name).to_lance().versions())


def rewrite(
    store: Store, name: str, column: str, gone: Iterable[str], keep: Iterable[int]
) -> dict[int, int]:
    """Old version -> the new one that holds all its rows but those with a `gone` value in
    `column`, for those of `keep` and the current version that hold one, hidden rows included.

    The current version is the last, as before. Nothing is removed: see `remove_rest`.
    """
    values = pa.array(sorted(gone), pa.string())
    current = store.version(name)
    kept = sorted({*keep, current} & set(versions(store, name)))
    moved: dict[int, int] = {}
    for version in kept:
        if _holds(store, name, version, column, values):
            schema = store.open(name).to_lance().checkout_version(version).schema
            moved[version] = store.replace(
                name, _others(store, name, version, column, values), schema
            )
    if moved and current not in moved:
        # An older version's rows were written last; what is current must not change.
        store.open(name).restore(current)
    return moved


def remove_rest(store: Store, name: str, moved: dict[int, int]) -> None:
    """Moves tags from old versions to new ones, then removes every version that is neither
    tagged nor current, and every file that only those needed."""
    for tag, version in store.tags(name).items():
        if version in moved:
            store.tag(name, tag, moved[version])
    store.open(name).to_lance().cleanup_old_versions(
        older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
    )


def rows_ever(
    store: Store, name: str, column: str, values: Iterable[str], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows with one of these values in `column`, of every version, hidden ones included;
    a row that versions share comes once."""
    wanted = pa.array(sorted(values), pa.string())
    seen: set[tuple[str, ...]] = set()
    for version in reversed(versions(store, name)):
        for fragment in store.open(name).to_lance().checkout_version(version).get_fragments():
            files = tuple(file.path for file in fragment.data_files())
            if files in seen:
                continue
            seen.add(files)
            rows = fragment.scanner(
                columns=list(dict.fromkeys([column, *columns])),
                with_row_id=True,
                include_deleted_rows=True,
                batch_size=_BATCH_ROWS,
            )
            for batch in rows.to_batches():
                yield from batch.filter(pc.is_in(batch.column(column), wanted)).to_pylist()


def _holds(store: Store, name: str, version: int, column: str, values: pa.Array) -> bool:
    dataset = store.open(name).to_lance().checkout_version(version)
    if column not in dataset.schema.names:
        return False
    for fragment in dataset.get_fragments():
        # Rows that a deletion hides are still in the fragment's file.
        rows = fragment.scanner(columns=[column], with_row_id=True, include_deleted_rows=True)
        if any(_any_of(batch.column(column), values) for batch in rows.to_batches()):
            return True
    return False


def _any_of(column: pa.Array, values: pa.Array) -> bool:
    return bool(pc.any(pc.is_in(column, values)).as_py())


def _others(
    store: Store, name: str, version: int, column: str, values: pa.Array
) -> Iterator[pa.RecordBatch]:
    for batch in store.scan(name, version=version, batch_rows=_BATCH_ROWS):
        left: Any = batch.filter(pc.invert(pc.is_in(batch.column(column), values)))
        if left.num_rows:
            yield left
