"""Rows out of bytes: JSON Lines, JSON, Parquet, CSV and TSV, plain or compressed.

A fault costs the rows it touches, not the file: it is yielded as a `BadRow` among the
good ones and reading goes on where that is possible. A `BadRow` that stands for more than one
row says so: what is lost may not pass for a single bad row. What the fields of a row mean is
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
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mona.errors import RequestError
from mona.files import DataFile, said

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_READ_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 256
# One row of text, and one JSON object that holds a whole file, are held in memory.
_MAX_ROW = 1 << 25
_MAX_OBJECT = 1 << 28
# A quoted cell over several lines that is longer was opened by a stray quotation mark.
_MAX_CELL_LINES = 2_000
_MAX_CELL_CHARS = 1 << 20
# What JSON says this close to the end of what has been read may change with the text to come.
_TOKEN_CHARS = 16
# Lists of rows that some collections wrap in one object per file.
_ROW_LISTS = ("Instances", "data", "examples")
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*:')
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
# What lies in place of data after a clone without its large files or a failed download.
_NOT_DATA = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/spec/"),
        "a Git LFS pointer",
        "git lfs pull",
    ),
    (re.compile(rb"[./]*(?:\.git)?/annex/objects/"), "a git-annex pointer", "git annex get"),
    (re.compile(rb"\s*<(?:!doctype|html|head|body|\?xml|error)\b", re.I), "a web page", ""),
    (re.compile(rb"PK\x03\x04"), "a zip archive", ""),
    (re.compile(rb"%PDF-"), "a PDF", ""),
)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it."""

    file: str
    line: int
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or a stretch of a file, that could not be read, and why.

    rows: how many rows it may have been, where that is known; rest_lost: whether what was lost
    with it is the rest of the file, or a stretch of unknown length.
    """

    file: str
    line: int
    reason: str
    rows: int = 1
    rest_lost: bool = False


class EmptyFileError(RequestError):
    """A file without a single row."""


def is_known(filename: str) -> bool:
    """Whether a file of this name is read: by its suffix."""
    return _container(filename)[0] is not None


def read_rows(
    file: DataFile, header: Collection[str] | None = None
) -> Generator[RawRow | BadRow, None, None]:
    """The rows of `file` in order, streamed: memory holds one row (32 MiB at most), not the file.

    (A .json file that is one object is held in memory, 256 MiB at most.) The container is told
    by the suffix; a .json file may hold an array, JSON Lines, one object with a list of rows in
    it, or one row. The first line of a table names its columns. `header` is for tables that may
    have none, and then know no quoting in TSV: a first line is a header where it has just these
    names, else columns are called "0", "1", ...

    Raises RequestError for an unknown suffix, UTF-16 text or two columns of one name,
    EmptyFileError for a file without rows. What can't be read is a BadRow.
    """
    reader, codec = _container(file.filename)
    if reader is None:
        known = ", ".join(_READERS)
        raise RequestError(
            f"{file.name}: unknown suffix; known are {known}, each plain, .gz or .zst"
        )
    return _read(file, reader, codec, header)


_Rows = Generator[RawRow | BadRow, None, None]


class _Reader(Protocol):
    def __call__(
        self, file: str, stream: io.BufferedReader, header: Collection[str] | None, /
    ) -> _Rows: ...


def _container(filename: str) -> tuple[_Reader | None, str | None]:
    """(reader, codec) of a file by its suffixes."""
    suffixes = PurePosixPath(filename.lower()).suffixes
    codec = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    container = suffixes[:-1] if codec else suffixes
    return (_READERS.get(container[-1]) if container else None), codec


def _read(
    file: DataFile, reader: _Reader, codec: str | None, header: Collection[str] | None
) -> _Rows:
    line = 0
    try:
        with closing(file.open()) as raw:
            fault = _head_fault(raw.peek(), codec)
            if fault:
                yield BadRow(file.name, 1, fault, rest_lost=True)
                return
            if reader is _tsv and header is None and _is_quoted(file, codec):
                reader = _quoted_tsv
            stream = _decompressed(raw, codec)
            prefix = stream.peek()
            if prefix.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise RequestError(f"{file.name}: the text is UTF-16; save it as UTF-8")
            fault = _head_fault(prefix, None)
            if fault:
                yield BadRow(file.name, 1, fault, rest_lost=True)
                return
            for row in reader(file.name, stream, header) if prefix else ():
                line = row.line
                yield row
    except OSError as error:
        reason = f"{codec}: {said(error)}" if codec else said(error)
        if "Frame requires too much memory" in reason:
            reason = "zstd: its window is above 128 MiB: compress it again without --long"
        reason += "; the rest is lost"
        yield BadRow(file.name, line + 1, reason, rest_lost=True)
        return
    if line == 0:
        raise EmptyFileError(f"{file.name}: empty file")


def _head_fault(head: bytes, codec: str | None) -> str | None:
    """What is wrong with a file that starts with these bytes and should be compressed so."""
    for pattern, what, remedy in _NOT_DATA:
        if pattern.match(head):
            return f"the file is {what}, not the data" + (f": {remedy}" if remedy else "")
    if codec and head and not head.startswith(_MAGIC[codec]):
        return f"the file is not compressed by {codec}"
    compressed = next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)
    if codec is None and compressed:
        suffix = next(suffix for suffix, name in COMPRESSIONS.items() if name == compressed)
        return f"the file is compressed by {compressed}: its name should end in {suffix}"
    return None


def _decompressed(raw: io.BufferedReader, codec: str | None) -> io.BufferedReader:
    if codec is None:
        return raw
    # Arrow tells a truncated stream from a whole one in both codecs; zstandard does not.
    inflated = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    return io.BufferedReader(cast(Any, inflated), _READ_BYTES)


def _bounded(stream: io.BufferedReader) -> Iterator[bytes]:
    """Lines; one that is longer than a row may be comes cut, and is the last."""
    while line := stream.readline(_MAX_ROW + 1):
        yield line
        if len(line) > _MAX_ROW:
            return


def _too_long(file: str, line: int, what: str = "the line") -> BadRow:
    reason = f"{what} is longer than {_MAX_ROW >> 20} MiB; the rest is lost"
    return BadRow(file, line, reason, rest_lost=True)


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


def _json_lines(file: str, stream: io.BufferedReader, _: Collection[str] | None = None) -> _Rows:
    yield from _rows_of_lines(file, _bounded(stream))


def _rows_of_lines(file: str, lines: Iterable[bytes]) -> _Rows:
    for number, line in enumerate(lines, 1):
        if len(line) > _MAX_ROW:
            yield _too_long(file, number)
            return
        text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if not text:
            continue
        try:
            value = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield BadRow(file, number, _not_utf8(error.object[error.start]))
        except json.JSONDecodeError as error:
            yield _invalid_line(file, number, line, error)
        except (ValueError, RecursionError) as error:
            yield BadRow(file, number, f"invalid JSON: {error}")
        else:
            if isinstance(value, list) and any(isinstance(row, dict) for row in value):
                reason = f"the line is a JSON array of {len(value)} rows: name such a file .json"
                yield BadRow(file, number, reason, rows=len(value))
            else:
                yield _as_row(file, number, value)


def _invalid_line(file: str, number: int, line: bytes, error: json.JSONDecodeError) -> BadRow:
    """The line as a bad row, with what else is lost with it."""
    reason = f"invalid JSON: {error.msg} (column {error.colno})"
    if error.msg == "Extra data":
        rows = _values_in(error.doc)
        return BadRow(file, number, f"{reason}; {rows} rows in one line", rows=rows)
    if b"\0" in line:
        reason += "; NUL bytes: the file is damaged"
        return BadRow(file, number, reason, rest_lost=True)
    # Only the last line can lack its end.
    is_open = error.pos >= len(error.doc) or not error.doc.endswith("}")
    if is_open and not line.endswith(b"\n"):
        reason += "; the file ends within a row: it may be cut"
        return BadRow(file, number, reason, rest_lost=True)
    return BadRow(file, number, reason)


def _values_in(text: str) -> int:
    """How many JSON values a line holds, a last one that is no JSON counted as well."""
    count = position = 0
    while position < len(text):
        count += 1
        try:
            _, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        space = _SPACE.match(text, position)
        position = space.end() if space else position
    return count


# --- JSON ---------------------------------------------------------------------------------


def _json(file: str, stream: io.BufferedReader, _: Collection[str] | None) -> _Rows:
    first = stream.peek().removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        yield from _json_array(file, stream)
        return
    # JSON Lines under another suffix: the second line opens an object of its own.
    head: list[bytes] = []
    while line := stream.readline(_MAX_OBJECT):
        head.append(line)
        if sum(not line.isspace() for line in head) == 2:
            break
    if len(head) > 1 and head[-1].lstrip().startswith(b"{"):
        yield from _rows_of_lines(file, itertools.chain(head, _bounded(stream)))
        return
    content = b"".join([*head, stream.read(_MAX_OBJECT)])
    if len(content) > _MAX_OBJECT:
        reason = f"one JSON object of more than {_MAX_OBJECT >> 20} MiB: write a row a line"
        yield BadRow(file, 1, reason, rest_lost=True)
        return
    yield from _json_object(file, content)


def _json_object(file: str, content: bytes) -> _Rows:
    if not content.strip():
        return
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadRow(file, line, _not_utf8(content[error.start]), rest_lost=True)
        return
    except json.JSONDecodeError as error:
        yield BadRow(file, error.lineno, f"invalid JSON: {error.msg}", rest_lost=True)
        return
    except (ValueError, RecursionError) as error:
        yield BadRow(file, 1, f"invalid JSON: {error}", rest_lost=True)
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
    """The part of a long text around the reading position, with that position's line and its
    distance (`offset`, characters) from the beginning."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text
        self.buffer = ""
        self.position = 0
        self.line = 1
        self.offset = 0

    def advance(self, position: int) -> None:
        self.line += self.buffer.count("\n", self.position, position)
        self.offset += position - self.position
        self.position = position

    def grow(self) -> bool:
        """Reads on, forgetting what lies behind; False at the end of the text.

        Doubles what is held, so that a long element is scanned a bounded number of times.
        ValueError where more than a row would be held.
        """
        rest = self.buffer[self.position :]
        if len(rest) > _MAX_ROW:
            raise ValueError(f"an element is longer than {_MAX_ROW >> 20} MiB")
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
        fault, is_cut = "", False
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
                is_cut = error.pos >= len(window.buffer.rstrip())
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
            opening = r"\{" + (rf"\s*{re.escape(first_key)}\s*:" if first_key else "")
            start = window.offset
            found = window.seek(re.compile(opening))
            # Without a next element, an array that is closed has lost its last one only.
            is_cut |= not found and not closed and not window.buffer.rstrip().endswith("]")
            lost = is_cut or window.offset - start > _READ_BYTES
            end = "; the rest is lost" if is_cut else ""
            yield BadRow(file, line, f"invalid JSON: {fault}{end}", rest_lost=lost)
            if not found:
                return
            expected = "first"
    if not closed:
        reason = "invalid JSON: the array is not closed"
        yield BadRow(file, window.line, reason, rest_lost=True)


# --- tables -------------------------------------------------------------------------------


def _parquet(file: str, stream: io.BufferedReader, _: Collection[str] | None) -> _Rows:
    if isinstance(stream.raw, io.FileIO):
        yield from _parquet_rows(file, stream)
        return
    # Parquet is read from its end: what only runs forward is unpacked first.
    with tempfile.TemporaryFile() as whole:
        shutil.copyfileobj(stream, whole, _READ_BYTES)
        yield from _parquet_rows(file, whole)


def _parquet_rows(file: str, source: Any) -> _Rows:
    line = stated = 0
    try:
        table = pq.ParquetFile(source, page_checksum_verification=True)
        stated = table.metadata.num_rows
        schema = table.schema_arrow
        _check_names(file, schema.names)
        # No format reads a date, and Python has none for some that Parquet has.
        names = [field.name for field in schema if not pa.types.is_temporal(field.type)]
        for batch in table.iter_batches(_PARQUET_BATCH_ROWS, columns=names):
            for row in _python_rows(batch):
                line += 1
                yield RawRow(file, line, row) if isinstance(row, dict) else BadRow(file, line, row)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        rest = f"{stated - line:,} of {stated:,} rows are" if stated else "the rest is"
        reason = f"invalid Parquet: {reason}; {rest} lost"
        yield BadRow(file, line + 1, reason, rest_lost=True)
        return
    if line != stated:
        reason = f"invalid Parquet: {stated:,} rows are stated, {line:,} came"
        yield BadRow(file, line + 1, reason, rest_lost=True)


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch as Python has them; why, for one that Python can't have."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError, TypeError):
        pass
    for index in range(batch.num_rows):
        row: dict[str, Any] = {}
        reason = ""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[name] = column[index].as_py()
            except UnicodeDecodeError as error:
                reason = f"column '{name}': {_not_utf8(error.object[error.start])}"
            except (ValueError, OverflowError, TypeError) as error:
                reason = f"column '{name}': {error}"
        yield reason or row


def _check_names(file: str, names: Collection[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise RequestError(f"{file}: two columns are called '{twice[0]}'")


class _Lines:
    """The lines of a table's text for csv.reader. csv.Error where a record gets too long."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._text = io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self.number = 0
        self.record: list[str] = []
        self.is_stray = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_MAX_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        chars = sum(map(len, self.record)) if self.record else 0
        several = len(self.record) >= _MAX_CELL_LINES or chars > _MAX_CELL_CHARS
        if several or len(line) > _MAX_ROW:
            self.is_stray = True
            raise csv.Error("a quoted cell does not end: is its quotation mark a stray one?")
        self.record.append(line)
        return line


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(line, cells) of each record; a csv.Error for one that can't be read. Ends at the first
    whose end is not found."""
    csv.field_size_limit(_MAX_ROW + 1)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.record.clear()
        line = lines.number + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, error
            if lines.is_stray:
                return


def _csv(file: str, stream: io.BufferedReader, header: Collection[str] | None) -> _Rows:
    lines = _Lines(stream)
    yield from _table(file, lines, _records(lines, ","), header)


def _quoted_tsv(file: str, stream: io.BufferedReader, header: Collection[str] | None) -> _Rows:
    lines = _Lines(stream)
    yield from _table(file, lines, _records(lines, "\t"), header)


def _tsv(file: str, stream: io.BufferedReader, header: Collection[str] | None) -> _Rows:
    """Tab separated values without quoting: a cell may start with a quotation mark."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")

    def records() -> Iterator[tuple[int, list[str] | csv.Error]]:
        for number in itertools.count(1):
            line = text.readline(_MAX_ROW + 1)
            if len(line) > _MAX_ROW:
                yield number, csv.Error(_too_long(file, number).reason)
                return
            if not line:
                return
            line = line.rstrip("\r\n")
            yield number, line.split("\t") if line else []

    yield from _table(file, None, records(), header)


def _is_quoted(file: DataFile, codec: str | None) -> bool:
    """Whether a TSV file's cells are quoted as a CSV file's (pandas writes such), found by
    reading it whole.

    They are where a quotation mark within quoted cells is doubled; or where every record can be
    read so, has the header's number of cells, and can't be meant to the letter: the header is
    quoted, or some lines have too few or too many cells when read to the letter.
    """
    fits, needed, doubled, width = True, False, False, 0
    try:
        with closing(file.open()) as raw:
            lines = _Lines(_decompressed(raw, codec))
            for _, cells in _records(lines, "\t"):
                if isinstance(cells, csv.Error):
                    fits = False
                    continue
                written = "".join(lines.record).rstrip("\r\n")
                if not width:
                    width = len(cells)
                    needed = written.startswith('"')
                fits &= not cells or len(cells) == width
                if '"' in written:
                    needed |= "\n" in written or written.count("\t") + 1 != width
                    marked = [cell.replace('"', '""') for cell in cells if '"' in cell]
                    doubled |= any(f'"{cell}"' in written for cell in marked)
    except OSError:
        # The reading that follows meets the same fault, and names it.
        fits = False
    return doubled or (fits and needed)


def _table(
    file: str,
    lines: _Lines | None,
    records: Iterator[tuple[int, list[str] | csv.Error]],
    header: Collection[str] | None,
) -> _Rows:
    """Rows by column name, or by "0", "1", ... where the first line is not a header."""
    columns: list[str] | None = None
    for line, cells in records:
        if isinstance(cells, csv.Error):
            yield _broken_record(file, line, cells, lines)
            continue
        if not cells:
            continue
        if columns is None:
            if header is None or set(cells) == set(header):
                _check_names(file, cells)
                columns = cells
                continue
            columns = [str(index) for index in range(len(cells))]
        complaint = _escaped_byte("".join(cells))
        if complaint:
            yield BadRow(file, line, complaint)
        elif len(cells) != len(columns):
            rows = len(lines.record) if lines else 1
            reason = f"{len(cells)} cells where {len(columns)} are expected"
            yield BadRow(file, line, reason, rows=rows)
        else:
            yield RawRow(file, line, dict(zip(columns, cells, strict=True)))


def _broken_record(file: str, line: int, error: csv.Error, lines: _Lines | None) -> BadRow:
    """A record that can't be read: each of its lines may have been a row."""
    if lines is None:
        return BadRow(file, line, str(error), rest_lost=True)
    rows = max(1, len(lines.record))
    reason = f"invalid CSV: {error}"
    at_end = "unexpected end of data" in str(error)
    if lines.is_stray or (at_end and rows > 1):
        return BadRow(file, line, f"{reason}; the rest is lost", rows=rows, rest_lost=True)
    if rows > 1:
        reason += f" (lines {line} to {line + rows - 1})"
    return BadRow(file, line, reason, rows=rows)


_READERS: dict[str, _Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
}
