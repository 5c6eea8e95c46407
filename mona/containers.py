"""Rows out of bytes: JSON Lines, JSON, Parquet, CSV and TSV, plain or compressed.

A fault costs the rows it touches, not the file: it is yielded as a `BadRow` among the
good ones and reading goes on where that is possible. What the fields of a row mean is
`mona.formats`; where files lie is `mona.files`.

`line` is where a row starts: the 1-based line of text, or the 1-based number of the row in
Parquet and in lists inside a JSON object.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mona.errors import RequestError
from mona.files import DataFile

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_READ_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 256
_MAX_CELL_CHARS = 1 << 28
# What JSON says this close to the end of what has been read may change with the text to come.
_TOKEN_CHARS = 16
# Lists of rows that some collections wrap in one object per file.
_ROW_LISTS = ("Instances", "data", "examples")
# A first line is a header when all its cells are names and one of them is among these.
_COLUMNS = frozenset(
    [
        "instruction",
        "input",
        "output",
        "response",
        "context",
        "prompt",
        "completion",
        "question",
        "answer",
        "rationale",
        "inputs",
        "targets",
        "definition",
        "ideal",
        "messages",
        "conversations",
        "chosen",
    ]
)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*:')
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it."""

    file: str
    line: int
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or a stretch of a file, that could not be read, and why."""

    file: str
    line: int
    reason: str


class EmptyFileError(RequestError):
    """A file without a single row."""


def read_rows(file: DataFile) -> Iterator[RawRow | BadRow]:
    """The rows of `file` in order, streamed: memory holds one row, not the file.

    (A .json file that is one object, and Parquet that is compressed as a whole or lies in an
    archive, are held in memory.) The container is told by the suffix; a .json file may hold
    an array, JSON Lines, one object with a list of rows in it, or one row.

    Raises RequestError for an unknown suffix or UTF-16 text, EmptyFileError for a file
    without rows.
    """
    suffixes = PurePosixPath(file.filename.lower()).suffixes
    codec = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    container = suffixes[:-1] if codec else suffixes
    reader = _READERS.get(container[-1]) if container else None
    if reader is None:
        known = ", ".join(_READERS)
        raise RequestError(
            f"{file.name}: unknown suffix; known are {known}, each plain, .gz or .zst"
        )
    return _read(file, reader, codec)


_Rows = Iterator[RawRow | BadRow]
_Reader = Callable[[str, io.BufferedReader], _Rows]


def _read(file: DataFile, reader: _Reader, codec: str | None) -> _Rows:
    line = 0
    with closing(file.open()) as raw:
        stream = _decompressed(raw, codec)
        try:
            prefix = stream.peek()
            if prefix.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise RequestError(f"{file.name}: the text is UTF-16; save it as UTF-8")
            for row in reader(file.name, stream) if prefix else ():
                line = row.line
                yield row
        except OSError as error:
            if codec is None:
                raise
            yield BadRow(file.name, line + 1, f"{codec}: {error}; the rest is lost")
            return
    if line == 0:
        raise EmptyFileError(f"{file.name}: empty file")


def _decompressed(raw: BinaryIO, codec: str | None) -> io.BufferedReader:
    if codec is None:
        return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(Any, raw))
    # Arrow tells a truncated stream from a whole one in both codecs; zstandard does not.
    inflated = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    return io.BufferedReader(cast(Any, inflated), _READ_BYTES)


def _as_row(file: str, line: int, value: object) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(file, line, value)
    return BadRow(file, line, f"the row is a JSON {type(value).__name__}, not an object")


def _not_utf8(byte: int) -> str:
    return f"not UTF-8 (byte 0x{byte:02X})"


def _escaped_byte(text: str) -> str | None:
    """The complaint about text that was decoded with surrogateescape, or None."""
    match = None if text.isascii() else _ESCAPED_BYTE.search(text)
    return _not_utf8(ord(match.group()) - 0xDC00) if match else None


# --- JSON Lines ---------------------------------------------------------------------------


def _json_lines(file: str, lines: Iterable[bytes]) -> _Rows:
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.strip()
        if not line:
            continue
        try:
            yield _as_row(file, number, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            yield BadRow(file, number, _not_utf8(error.object[error.start]))
        except json.JSONDecodeError as error:
            yield BadRow(file, number, f"invalid JSON: {error.msg} (column {error.colno})")
        except (ValueError, RecursionError) as error:
            yield BadRow(file, number, f"invalid JSON: {error}")


# --- JSON ---------------------------------------------------------------------------------


def _json(file: str, stream: io.BufferedReader) -> _Rows:
    first = stream.peek().removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        yield from _json_array(file, stream)
        return
    # JSON Lines under another suffix: the second line opens an object of its own.
    head: list[bytes] = []
    for line in stream:
        head.append(line)
        if sum(not line.isspace() for line in head) == 2:
            break
    if len(head) > 1 and head[-1].lstrip().startswith(b"{"):
        yield from _json_lines(file, itertools.chain(head, stream))
        return
    yield from _json_object(file, b"".join([*head, stream.read()]))


def _json_object(file: str, content: bytes) -> _Rows:
    if not content.strip():
        return
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadRow(file, line, _not_utf8(content[error.start]))
        return
    except json.JSONDecodeError as error:
        yield BadRow(file, error.lineno, f"invalid JSON: {error.msg}")
        return
    except (ValueError, RecursionError) as error:
        yield BadRow(file, 1, f"invalid JSON: {error}")
        return
    lists = [value[key] for key in _ROW_LISTS if isinstance(value, dict) and key in value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        yield _as_row(file, 1, value)
        return
    # Super-NaturalInstructions states the task once for all instances of a file.
    shared = {"Definition": value["Definition"]} if "Definition" in value else {}
    for number, row in enumerate(lists[0], 1):
        yield _as_row(file, number, {**shared, **row} if isinstance(row, dict) else row)


class _Window:
    """The part of a long text around the reading position, with that position's line."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text
        self.buffer = ""
        self.position = 0
        self.line = 1

    def advance(self, position: int) -> None:
        self.line += self.buffer.count("\n", self.position, position)
        self.position = position

    def grow(self) -> bool:
        """Reads on, forgetting what lies behind; False at the end of the text.

        Doubles what is held, so that a long element is scanned a bounded number of times.
        """
        rest = self.buffer[self.position :]
        more = self._text.read(max(_READ_BYTES, len(rest)))
        # At the end nothing moves: positions in the buffer stay good.
        if not more:
            return False
        self.buffer, self.position = rest + more, 0
        return True

    def next_character(self) -> str:
        """Moves to the next character that is not white space; "" at the end."""
        while True:
            match = _SPACE.match(self.buffer, self.position)
            assert match is not None
            self.advance(match.end())
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.grow():
                return ""

    def decode(self) -> tuple[Any, str, int]:
        """The JSON value at the position, its text and its line; moves behind it.

        Raises json.JSONDecodeError with a position in `buffer`, or another ValueError or
        RecursionError where the value is sound JSON that Python refuses.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.buffer) - _TOKEN_CHARS
                if (cut or error.msg.startswith("Unterminated string")) and self.grow():
                    continue
                raise
            # A number may go on behind the end of what has been read.
            cut = end >= len(self.buffer) - _TOKEN_CHARS
            if cut and self.buffer[end - 1] not in '}]"' and self.grow():
                continue
            text, line = self.buffer[self.position : end], self.line
            self.advance(end)
            return value, text, line

    def seek(self, pattern: re.Pattern[str]) -> bool:
        """Moves to the next match; False, and the end of the text, where there is none."""
        overlap = 4096
        while True:
            match = pattern.search(self.buffer, self.position)
            if match:
                self.advance(match.start())
                return True
            self.advance(max(self.position, len(self.buffer) - overlap))
            if not self.grow():
                return False


_DECODER = json.JSONDecoder()


def _json_array(file: str, stream: io.BufferedReader) -> _Rows:
    """The elements of one JSON array, one by one.

    After a fault reading goes on at the next object that starts with the same key as the
    elements before it: nested objects rarely do.
    """
    window = _Window(
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    )
    window.next_character()
    window.advance(window.position + 1)
    first_key = ""
    closed = False
    # What may come: "first" (an element or the end), "element", or "separator".
    expected = "first"
    while character := window.next_character():
        fault = ""
        line = window.line
        if character == "]" and expected == "element":
            yield BadRow(file, line, "invalid JSON: a comma before the closing bracket")
            expected = "separator"
        elif character == "]":
            window.advance(window.position + 1)
            if not window.next_character():
                return
            closed = True
            line = window.line
            fault = "text behind the end of the array"
        elif expected == "separator":
            if character == ",":
                window.advance(window.position + 1)
            elif character == "{":
                yield BadRow(file, line, "invalid JSON: no comma between two elements")
            else:
                fault = "expecting ',' or ']'"
            expected = "element"
        else:
            key = _FIRST_KEY.match(window.buffer, window.position)
            own_key = key.group(1) if key else ""
            try:
                value, text, line = window.decode()
            except json.JSONDecodeError as error:
                fault = error.msg
                line += window.buffer.count("\n", window.position, error.pos)
            except (ValueError, RecursionError) as error:
                fault = str(error)
            else:
                complaint = _escaped_byte(text)
                row = _as_row(file, line, value)
                yield BadRow(file, line, complaint) if complaint else row
                if key_found := _FIRST_KEY.match(text):
                    first_key = key_found.group(1)
                expected = "separator"
            if fault:
                first_key = first_key or own_key
                window.advance(window.position + 1)
        if fault:
            yield BadRow(file, line, f"invalid JSON: {fault}")
            opening = r"\{" + (rf"\s*{re.escape(first_key)}\s*:" if first_key else "")
            if not window.seek(re.compile(opening)):
                return
            expected = "first"
    if not closed:
        yield BadRow(file, window.line, "invalid JSON: the array is not closed")


# --- tables -------------------------------------------------------------------------------


def _parquet(file: str, stream: io.BufferedReader) -> _Rows:
    line = 0
    # Parquet is read from its end: what only runs forward is held whole.
    source = stream if isinstance(stream.raw, io.FileIO) else io.BytesIO(stream.read())
    try:
        batches = pq.ParquetFile(source).iter_batches(_PARQUET_BATCH_ROWS)
        for batch in batches:
            for data in batch.to_pylist():
                line += 1
                yield RawRow(file, line, data)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        yield BadRow(file, line + 1, f"invalid Parquet: {reason}; the rest is lost")


def _csv(file: str, stream: io.BufferedReader) -> _Rows:
    csv.field_size_limit(_MAX_CELL_CHARS)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)

    def records() -> Iterator[tuple[int, list[str] | csv.Error]]:
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, error

    yield from _table(file, records())


def _tsv(file: str, stream: io.BufferedReader) -> _Rows:
    """Tab separated values know no quoting: a cell may start with a quotation mark."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    lines = (line.rstrip("\r\n") for line in text)
    yield from _table(
        file, ((number, line.split("\t") if line else []) for number, line in enumerate(lines, 1))
    )


def _table(file: str, records: Iterator[tuple[int, list[str] | csv.Error]]) -> _Rows:
    """Rows by column name, or by "0", "1", ... where the first line is not a header."""
    columns: list[str] | None = None
    for line, cells in records:
        if isinstance(cells, csv.Error):
            yield BadRow(file, line, f"invalid CSV: {cells}")
            continue
        if not cells:
            continue
        if columns is None:
            if _is_header(cells):
                columns = cells
                continue
            columns = [str(index) for index in range(len(cells))]
        complaint = _escaped_byte("".join(cells))
        if complaint:
            yield BadRow(file, line, complaint)
        elif len(cells) != len(columns):
            yield BadRow(file, line, f"{len(cells)} cells where {len(columns)} are expected")
        else:
            yield RawRow(file, line, dict(zip(columns, cells, strict=True)))


def _is_header(cells: list[str]) -> bool:
    return (
        all(_NAME.fullmatch(cell) for cell in cells)
        and len(set(cells)) == len(cells)
        and not _COLUMNS.isdisjoint(cells)
    )


_READERS: dict[str, _Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
}
