"""Taking rows out of every version of a table, their bytes included.

Lance keeps what it deletes: a deletion only hides a row, and old versions keep their files. So
each version to be kept that holds such a row is written anew without it, as a newer version
of the same table (a version number is never used twice), and once whoever names the old ones
names the new ones, the old ones and their files are removed.

Which rows must go, and who is told of the new versions, is the caller's. WorkError, in one line,
for a table that can't be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mona.traces import BLANK
from resources.store import Store

# Token activations make rows of megabytes.
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Cut:
    """What goes out of a table: the rows that `found`, which reads `columns`, says true of.
    With `blank`, a column of strings, such a row stays and only that string is replaced; `found`
    must then say false of what was replaced."""

    columns: tuple[str, ...]
    found: Callable[[pa.RecordBatch], pa.Array]
    blank: str | None = None


def rows_with(column: str, values: Iterable[str]) -> Cut:
    """The rows that have one of these values in a column."""
    wanted = pa.array(sorted(values), pa.string())
    return Cut((column,), lambda batch: pc.is_in(batch.column(column), wanted))


def versions(store: Store, name: str) -> list[int]:
    """Every version of a table that exists, ascending."""
    table = store.open(name)
    with store.undamaged(name):
        return sorted(int(found["version"]) for found in table.to_lance().versions())


def rewrite(store: Store, name: str, cut: Cut, keep: Iterable[int]) -> dict[int, int]:
    """Old version -> the new one without what goes, for those of `keep` and the current version
    that hold any of it, hidden rows included.

    The current version is the last, as before. Nothing is removed: see `remove_rest`.
    """
    current = store.version(name)
    kept = sorted({*keep, current} & set(versions(store, name)))
    moved: dict[int, int] = {}
    for version in kept:
        with store.undamaged(name):
            if _holds(store, name, version, cut):
                schema = store.open(name).to_lance().checkout_version(version).schema
                moved[version] = store.replace(name, _left(store, name, version, cut), schema)
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
        with store.undamaged(name):
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


def _holds(store: Store, name: str, version: int, cut: Cut) -> bool:
    dataset = store.open(name).to_lance().checkout_version(version)
    if not set(cut.columns) <= set(dataset.schema.names):
        return False
    for fragment in dataset.get_fragments():
        # Rows that a deletion hides are still in the fragment's file.
        rows = fragment.scanner(
            columns=list(cut.columns),
            with_row_id=True,
            include_deleted_rows=True,
            batch_size=_BATCH_ROWS,
        )
        if any(pc.any(cut.found(batch)).as_py() for batch in rows.to_batches()):
            return True
    return False


def _left(store: Store, name: str, version: int, cut: Cut) -> Iterator[pa.RecordBatch]:
    for batch in store.scan(name, version=version, batch_rows=_BATCH_ROWS):
        found = cut.found(batch)
        if cut.blank is None:
            left: Any = batch.filter(pc.invert(found))
        else:
            place = batch.schema.get_field_index(cut.blank)
            text = pc.if_else(found, BLANK, batch.column(place))
            left = batch.set_column(place, batch.schema.field(place), text)
        if left.num_rows:
            yield left
