"""The store: named Lance tables under one root, with atomic replacement, keyed appends,
tags that pin versions, and locks that keep two writers off one table.

What the tables hold belongs to the modules that own their schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mona.errors import RequestError, WorkError
from resources.locks import held
from resources.root import claim
from resources.withdrawals import Withdrawals

_TABLE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_IDS_PER_DELETE = 1_000


class Store(dg.ConfigurableResource):
    """Tables under `root` (a folder or an object-store URI); local files under `home`."""

    root: str
    home: str

    @cached_property
    def _connection(self) -> Any:
        import lancedb

        try:
            connection = lancedb.connect(f"{self.root.rstrip('/')}/tables")
            if "://" in self.root:
                connection.list_tables(limit=1)
        except (OSError, RuntimeError, ValueError) as error:
            # lance ends its sentence with the line of its own source.
            said = str(error).split(", /")[0].replace("\n", " ")
            hint = ": set AWS_REGION" if "region" in said else ""
            raise WorkError(f"the store at {self.root} can't be reached: {said}{hint}") from error
        claim(self.root, Path(self.home))
        return connection

    def folder(self, *parts: str) -> Path:
        """A local folder under home, made if it is missing."""
        path = Path(self.home).joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, name: str, *, withdrawing: bool = False) -> Iterator[None]:
        """Holds `name` for this process; TakenError at once when another process has it, and
        WorkError when a withdrawal is not complete: what is written then could hold what it
        takes out. Only the withdrawal itself is `withdrawing`.
        """
        with held(self.folder("locks") / f"{_checked(name)}.lock", name):
            pending = [] if withdrawing else Withdrawals(self.home).unfinished()
            if pending:
                raise WorkError(
                    f"{name}: withdrawal {pending[0]} is at work or was cut short; wait for it, "
                    "or complete it by mona run"
                )
            yield

    def table_names(self) -> list[str]:
        """Every table, sorted."""
        names: list[str] = []
        token: str | None = None
        while True:
            page = self._connection.list_tables(page_token=token, limit=1_000)
            names.extend(page.tables)
            token = page.page_token
            if not token:
                return sorted(names)

    def exists(self, name: str) -> bool:
        """Whether there is a table of this name."""
        return self._open(name) is not None

    def _open(self, name: str) -> Any | None:
        try:
            return self._connection.open_table(_checked(name))
        except (FileNotFoundError, ValueError) as error:
            # lancedb says "not found" in a ValueError; anything else is a fault of its own.
            if "not found" not in str(error):
                raise
            return None

    def open(self, name: str) -> Any:
        """The lancedb table. RequestError when it does not exist."""
        table = self._open(name)
        if table is None:
            raise RequestError(f"the store at {self.root} has no table '{name}'")
        return table

    def ensure(self, name: str, schema: pa.Schema) -> None:
        """Creates an empty table with `sample_id` as its key, unless it exists.

        RequestError when it exists with another schema or other schema metadata.
        """
        table = self._open(name)
        if table is None:
            with _disk_errors(name):
                # exist_ok makes two creators safe; the key keeps a row from entering twice.
                created = self._connection.create_table(
                    _checked(name), schema=schema, exist_ok=True
                )
                created.to_lance()  # fails here, not at the first append, if it is unreadable
            return
        if table.schema.metadata != schema.metadata or not table.schema.equals(schema):
            raise RequestError(
                f"table '{name}' was made under another fingerprint or schema "
                f"({_shown(table.schema.metadata)} against {_shown(schema.metadata)})"
            )

    def replace(self, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
        """Replaces the table's rows in one commit and returns the new version.

        Until the commit readers see what was there; a crash leaves it there.
        """
        reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
        with _disk_errors(name):
            table = self._connection.create_table(_checked(name), data=reader, mode="overwrite")
        return int(table.version)

    def append(self, name: str, rows: pa.Table) -> None:
        """Adds rows in one commit. The caller holds the table's lock and adds new keys only."""
        if rows.num_rows:
            with _disk_errors(name):
                self.open(name).add(rows)

    def delete(self, name: str, sample_ids: Iterable[str]) -> int:
        """Removes rows by key and returns how many keys were asked for."""
        wanted = sorted(sample_ids)
        table = self.open(name) if wanted else None
        for start in range(0, len(wanted), _IDS_PER_DELETE):
            listed = ", ".join(f"'{key}'" for key in wanted[start : start + _IDS_PER_DELETE])
            assert table is not None
            table.delete(f"sample_id IN ({listed})")
        return len(wanted)

    def compact(self, name: str) -> None:
        """Merges the small fragments that many commits leave."""
        self.open(name).to_lance().optimize.compact_files()

    def version(self, name: str) -> int:
        """The table's current version."""
        return int(self.open(name).version)

    def count(self, name: str) -> int:
        """Rows in the table."""
        return int(self.open(name).count_rows())

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        version: int | None = None,
        where: str | None = None,
        batch_rows: int = 8_192,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the chosen columns in table order, streamed; `where` is an SQL predicate."""
        dataset = self.open(name).to_lance()
        if version is not None:
            dataset = dataset.checkout_version(version)
        yield from dataset.to_batches(
            columns=list(columns) if columns is not None else None,
            filter=where,
            batch_size=batch_rows,
            scan_in_order=True,
        )

    def read(self, name: str, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        """The whole table at once: for tables that are small by nature."""
        dataset_schema = self.open(name).schema
        schema = (
            dataset_schema
            if columns is None
            else pa.schema([dataset_schema.field(column) for column in columns])
        )
        batches = list(self.scan(name, columns, **options))
        return (
            pa.Table.from_batches(batches, schema=schema.remove_metadata())
            if batches
            else (schema.empty_table())
        )

    def sample_ids(self, name: str, *, version: int | None = None) -> pa.Array:
        """The key column, in table order; empty when the table does not exist."""
        if not self.exists(name):
            return pa.array([], pa.string())
        batches = [batch.column(0) for batch in self.scan(name, ["sample_id"], version=version)]
        return pa.concat_arrays(batches) if batches else pa.array([], pa.string())

    def rows(
        self,
        name: str,
        columns: Sequence[str],
        sample_ids: Sequence[str],
        *,
        version: int | None = None,
    ) -> pa.Table:
        """The rows of these keys, in the order asked for. WorkError if one is missing."""
        wanted = pa.array(sample_ids, pa.string())
        positions = pc.index_in(wanted, self.sample_ids(name, version=version))
        if positions.null_count:
            missing = sample_ids[positions.is_null().to_pylist().index(True)]
            raise WorkError(f"table '{name}' has no row of sample {missing}")
        return self.take(name, positions, columns, version=version)

    def take(
        self,
        name: str,
        positions: np.ndarray | pa.Array,
        columns: Sequence[str],
        *,
        version: int | None = None,
    ) -> pa.Table:
        """The rows at these positions of the table's order, in the order asked for."""
        dataset = self.open(name).to_lance()
        if version is not None:
            dataset = dataset.checkout_version(version)
        return dataset.take(positions, columns=list(columns))

    def tag(self, name: str, tag: str, version: int) -> None:
        """Pins `version` under `tag`, so that clean-up keeps it; moving a tag is allowed."""
        tags = self.open(name).tags
        if tag in tags.list():
            tags.update(tag, version)
        else:
            tags.create(tag, version)

    def tags(self, name: str) -> dict[str, int]:
        """Tag -> version."""
        return {tag: int(entry["version"]) for tag, entry in self.open(name).tags.list().items()}

    def files(self, name: str, version: int) -> list[str]:
        """Every file that a version refers to, as paths under the table's folder, sorted."""
        dataset = self.open(name).to_lance().checkout_version(version)
        # Newest first by name: lance counts manifests down from the largest 64-bit number.
        found = {f"_versions/{2**64 - 1 - version}.manifest"}
        for fragment in dataset.get_fragments():
            found.update(f"data/{file.path}" for file in fragment.data_files())
            deleted = fragment.deletion_file()
            if deleted is not None:
                found.add(str(deleted))
        return sorted(found)

    def open_file(self, name: str, path: str) -> Any:
        """A file of a table, for reading bytes. FileNotFoundError when it is not there."""
        from pyarrow import fs

        filesystem, root = fs.FileSystem.from_uri(self.root)
        return filesystem.open_input_file(f"{root}/tables/{_checked(name)}.lance/{path}")

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file under the table's folder, by its path there."""
        from pyarrow import fs

        filesystem, root = fs.FileSystem.from_uri(self.root)
        folder = f"{root}/tables/{_checked(name)}.lance"
        found = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
        return {
            info.path.removeprefix(f"{folder}/"): int(info.size)
            for info in found
            if info.type == fs.FileType.File
        }

    def untag(self, name: str, tag: str) -> None:
        """Takes a tag off; the version it pinned can then be cleaned up."""
        self.open(name).tags.delete(tag)

    def drop(self, name: str) -> None:
        """Removes a table with all its versions and tags."""
        self._connection.drop_table(_checked(name))


def _checked(name: str) -> str:
    if not _TABLE_NAME.fullmatch(name):
        raise RequestError(f"'{name}' is no table name")
    return name


def _shown(metadata: dict[bytes, bytes] | None) -> str:
    return ", ".join(f"{k.decode()}={v.decode()}" for k, v in sorted((metadata or {}).items()))


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    """A full disk in one line; lance reports it as text inside other errors."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if "No space left on device" in str(error) or "StorageFull" in str(error):
            raise WorkError(f"table '{name}': the disk is full; nothing was committed") from error
        raise
