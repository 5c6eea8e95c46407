"""The files of an export: put in place whole or not at all, and read again.

What a row looks like in a format is the format's file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mona.errors import RequestError, WorkError
from mona.exports.base import FileKind, Row
from mona.publishing import published_file, unfinished

_PARQUET_SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("sample_id", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float32()),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
_PARQUET_ROWS = 1_000


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends. RequestError where none can
    be written there."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(published_file(path, unfinished(path)))
        except OSError as error:
            raise RequestError(f"{path}: cannot be written ({error.strerror})") from error
        yield temporary


def write_rows(rows: Iterable[Row], path: Path, kind: FileKind) -> None:
    """The rows as one file of a kind, in place of what was there once all are written."""
    with replacing(path) as temporary:
        if kind == "parquet":
            _write_parquet(rows, temporary)
            return
        with temporary.open("w", encoding="utf-8") as file:
            if kind == "array":
                _write_array(rows, file)
            else:
                file.writelines(_json(row) + "\n" for row in rows)


def read_back(file: Path, kind: FileKind) -> list[Row]:
    """The rows of a written file, none of settings. WorkError where it is not what it was written
    as."""
    try:
        rows: Any = []
        if kind == "parquet":
            rows = pq.read_table(file).to_pylist()
        elif kind == "array":
            rows = json.loads(file.read_text(encoding="utf-8"))
        elif kind == "jsonl":
            # By line feeds only: a text may hold other line separators.
            lines = file.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
    except (ValueError, OSError) as error:
        raise WorkError(f"{file}: can't be read as {kind} ({error})") from error
    if not all(isinstance(row, dict) and "sample_id" in row for row in rows):
        raise WorkError(f"{file}: has rows without a sample_id")
    return cast(list[Row], rows)


def _write_array(rows: Iterable[Row], file: TextIO) -> None:
    """One JSON array, an element a line: what these formats' own files are. Readers take its
    types from the whole; from lines, a first stretch of empty histories misleads them."""
    separator = "[\n"
    for row in rows:
        file.write(separator + _json(row))
        separator = ",\n"
    file.write("\n]\n" if separator != "[\n" else "[]\n")


def _write_parquet(rows: Iterable[Row], path: Path) -> None:
    iterator = iter(rows)
    with pq.ParquetWriter(path, _PARQUET_SCHEMA) as writer:
        while batch := list(islice(iterator, _PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=_PARQUET_SCHEMA))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
