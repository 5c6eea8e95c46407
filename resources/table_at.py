"""A version of a table as it is handed to whoever reads it.

A step opens what it reads once, at the versions its inputs' records sealed, and hands the
opened tables on: what another process commits meanwhile is not seen through them. Writing is
`resources.store`; which versions a step reads is `resources.snapshot`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mona.errors import WorkError

_PLACE_IN_LANCE = re.compile(r",? /\S+\.rs:\d+:\d+")


@dataclass(frozen=True)
class TableAt:
    """One version of one table; `dataset` is Lance's handle of it, which never moves on, and
    `folder` where it lies."""

    name: str
    version: int
    dataset: Any
    folder: str

    @property
    def schema(self) -> pa.Schema:
        """The version's schema."""
        return self.dataset.schema

    @cached_property
    def sample_ids(self) -> pa.Array:
        """The key column, in table order."""
        batches = [batch.column(0) for batch in self.scan(["sample_id"])]
        return pa.concat_arrays(batches) if batches else pa.array([], pa.string())

    @cached_property
    def files(self) -> list[str]:
        """Every file the version refers to, as paths under the table's folder, sorted."""
        # Newest first by name: lance counts manifests down from the largest 64-bit number.
        found = {f"_versions/{2**64 - 1 - self.version}.manifest"}
        for fragment in self.dataset.get_fragments():
            found.update(f"data/{file.path}" for file in fragment.data_files())
            deleted = fragment.deletion_file()
            if deleted is not None:
                found.add(str(deleted))
        return sorted(found)

    def count(self) -> int:
        """Rows in it."""
        return int(self.dataset.count_rows())

    def scan(
        self,
        columns: Sequence[str] | None = None,
        *,
        where: str | None = None,
        batch_rows: int = 8_192,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the chosen columns in table order, streamed; `where` is an SQL predicate.

        WorkError where the stored rows can't be read."""
        with undamaged(self.name, self.folder):
            yield from self.dataset.to_batches(
                columns=list(columns) if columns is not None else None,
                filter=where,
                batch_size=batch_rows,
                scan_in_order=True,
            )

    def read(self, columns: Sequence[str] | None = None, *, where: str | None = None) -> pa.Table:
        """All of it at once: for tables that are small by nature."""
        named = self.schema.names if columns is None else columns
        schema = pa.schema([self.schema.field(column) for column in named])
        batches = list(self.scan(columns, where=where))
        return pa.Table.from_batches(batches, schema=schema) if batches else schema.empty_table()

    def rows(self, columns: Sequence[str], sample_ids: Sequence[str]) -> pa.Table:
        """The rows of these keys, in the order asked for. WorkError if one is missing."""
        wanted = pa.array(sample_ids, pa.string())
        positions = pc.index_in(wanted, self.sample_ids)
        if positions.null_count:
            missing = wanted[positions.is_null().to_pylist().index(True)]
            raise WorkError(f"table '{self.name}' has no row of sample {missing}")
        return self.take(positions, columns)

    def take(self, positions: np.ndarray | pa.Array, columns: Sequence[str]) -> pa.Table:
        """The rows at these positions of the table's order, in the order asked for."""
        with undamaged(self.name, self.folder):
            return self.dataset.take(positions, columns=list(columns))


def damage(name: str, folder: str, problem: str) -> str:
    """One line on a damaged table, with what a person can do about it."""
    return (
        f"table '{name}': {problem}: restore {folder} from a backup, or delete that folder "
        "and the next mona run makes the table anew, without its past versions"
    )


@contextmanager
def undamaged(name: str, folder: str) -> Iterator[None]:
    """What lance raises of a damaged table as one line that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        said = _PLACE_IN_LANCE.sub("", said)
        raise WorkError(damage(name, folder, f"can't be read ({said})")) from error
