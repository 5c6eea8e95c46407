"""From files to target rows. The readers are the files beside, found by `mona.registry.READERS`."""

from __future__ import annotations

from collections.abc import Sequence

from mona.errors import RequestError
from mona.files import DataFile
from mona.registry import READERS
from mona.spec import TargetReader
from mona.targets._row import TargetRow


def read_target(
    reader: TargetReader, files: Sequence[DataFile], task_ids: tuple[int, int] | None = None
) -> list[TargetRow]:
    """The rows of all files, in the order of `files` and of the rows in them.

    task_ids: the first and last `task_id` to read; only for a reader that reads splits.
    Raises RequestError for a reader there is none of, a row that can't be read, a file without
    rows (unless the reader says that it may have none), and `task_ids` with a reader that has
    none.
    """
    kind = READERS.get(reader)
    if task_ids is not None and kind.read_between is None:
        known = [name for name in READERS.names() if READERS.get(name).read_between is not None]
        raise RequestError(f"task_ids is for reader {' or '.join(known)}, not {reader}")
    rows = []
    for file in files:
        if task_ids is not None and kind.read_between is not None:
            found = kind.read_between(file, task_ids)
        else:
            found = kind.read(file)
        # A split may lie in one of several files.
        if not found and not kind.may_be_empty and task_ids is None:
            raise RequestError(f"{file.name}: no rows")
        rows += found
    if not rows:
        first = f" in {files[0].name} and {len(files) - 1} more" if files else ""
        raise RequestError(f"reader {reader} finds no {kind.made}{first}")
    return rows
