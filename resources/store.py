"""The store: named Lance tables under one root, with atomic replacement, appends merged on
the key, tags that pin versions, and locks that keep two writers off one table.

What the tables hold belongs to the modules that own their schemas, and which there are to
`resources.tables`; a version of a table that is handed to whoever reads it is
`resources.table_at`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from mona.errors import RequestError, WorkError
from resources.locks import held
from resources.root import claim
from resources.table_at import TableAt, damage, undamaged
from resources.tables import require_declared
from resources.withdrawals import Withdrawals

_TABLE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_IDS_PER_DELETE = 1_000
# A compacted table has about as many fragments, of at least so many rows.
_FRAGMENTS = 128
_LEAST_ROWS = 64


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
        # Who only asks whether it is free has it for a moment.
        with held(self.folder("locks") / f"{_checked(name)}.lock", name, wait_seconds=0.2):
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

    def folders(self) -> set[str]:
        """The names of the tables that have a folder, readable or not; without lancedb, whose
        import takes a second."""
        from pyarrow import fs

        filesystem, root = fs.FileSystem.from_uri(self.root)
        selector = fs.FileSelector(f"{root}/tables", allow_not_found=True)
        found = (info.base_name for info in filesystem.get_file_info(selector))
        return {name.removesuffix(".lance") for name in found if name.endswith(".lance")}

    def exists(self, name: str) -> bool:
        """Whether there is a table of this name."""
        return self._open(name) is not None

    def _open(self, name: str) -> Any | None:
        with self.undamaged(name):
            try:
                return self._connection.open_table(_checked(name))
            except (FileNotFoundError, ValueError) as error:
                # lancedb says "not found" in a ValueError; anything else is a fault of its own.
                if "not found" not in str(error):
                    raise
                return None

    def undamaged(self, name: str) -> AbstractContextManager[None]:
        """What lance raises of a damaged table becomes a WorkError of one line in the block."""
        return undamaged(name, self._folder_of(name))

    def damage(self, name: str, problem: str) -> str:
        """One line on a damaged table, with what a person can do about it."""
        return damage(name, self._folder_of(name), problem)

    def _folder_of(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/tables/{name}.lance"

    def open(self, name: str) -> Any:
        """The lancedb table. RequestError when it does not exist."""
        table = self._open(name)
        if table is None:
            raise RequestError(f"the store at {self.root} has no table '{name}'")
        return table

    def ensure(self, name: str, schema: pa.Schema) -> None:
        """Creates an empty table with `sample_id` as its key, unless it exists.

        RequestError when it exists with another schema or other schema metadata, WorkError when
        `resources.tables` declares no such table.
        """
        require_declared(_checked(name), schema)
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

        Until the commit readers see what was there; a crash leaves it there. WorkError when
        `resources.tables` declares no such table.
        """
        require_declared(_checked(name), schema)
        reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
        with _disk_errors(name):
            table = self._connection.create_table(_checked(name), data=reader, mode="overwrite")
        return int(table.version)

    def append(self, name: str, rows: pa.Table) -> None:
        """Adds the rows whose key is not there yet, in one commit. The caller holds the table's
        lock; the merge keeps a second writer, who can't be locked out, from doubling rows."""
        if rows.num_rows:
            with _disk_errors(name):
                self.open(name).merge_insert("sample_id").when_not_matched_insert_all().execute(
                    rows
                )

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
        """Merges the small fragments that many commits leave, and leaves out deleted rows.

        Small is under a 128th of the table: what was merged once stays as it is, so that past
        versions share it, and a refresh writes little more than its own rows.
        """
        dataset = self.open(name).to_lance()
        dataset.optimize.compact_files(
            target_rows_per_fragment=max(dataset.count_rows() // _FRAGMENTS, _LEAST_ROWS),
            materialize_deletions_threshold=0.0,
        )

    def version(self, name: str) -> int:
        """The table's current version."""
        return int(self.open(name).version)

    def count(self, name: str) -> int:
        """Rows in the table."""
        return int(self.open(name).count_rows())

    def at(self, name: str, version: int) -> TableAt:
        """A version of a table, for reading. RequestError when there is no such table, WorkError
        when the version is gone or can't be read."""
        table = self.open(name)
        with self.undamaged(name):
            dataset = table.to_lance().checkout_version(version)
            return TableAt(name, version, dataset, self._folder_of(name))

    def newest(self, name: str) -> TableAt:
        """A table as it is now, for reading: what is committed later is not seen through it."""
        table = self.open(name)
        with self.undamaged(name):
            dataset = table.to_lance()
            return TableAt(name, int(dataset.version), dataset, self._folder_of(name))

    def _at(self, name: str, version: int | None) -> TableAt:
        return self.newest(name) if version is None else self.at(name, version)

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        version: int | None = None,
        where: str | None = None,
        batch_rows: int = 8_192,
    ) -> Iterator[pa.RecordBatch]:
        """As `TableAt.scan`, of a version or the newest."""
        yield from self._at(name, version).scan(columns, where=where, batch_rows=batch_rows)

    def read(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        version: int | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """As `TableAt.read`, of a version or the newest."""
        return self._at(name, version).read(columns, where=where)

    def sample_ids(self, name: str, *, version: int | None = None) -> pa.Array:
        """The key column, in table order; empty when the table does not exist."""
        if not self.exists(name):
            return pa.array([], pa.string())
        return self._at(name, version).sample_ids

    def rows(
        self,
        name: str,
        columns: Sequence[str],
        sample_ids: Sequence[str],
        *,
        version: int | None = None,
    ) -> pa.Table:
        """As `TableAt.rows`, of a version or the newest."""
        return self._at(name, version).rows(columns, sample_ids)

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
        return self.at(name, version).files

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
