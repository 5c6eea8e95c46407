"""What a file of this folder says of its reader, and what readers share: strict reading, where
whatever can't be read is a RequestError that names the file and the row (targets are small and
must be right, so nothing is set aside), and the layout of questions with lettered options.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mona.containers import BadRow, RawRow, read_rows
from mona.errors import RequestError
from mona.files import DataFile, said
from mona.sample import Message
from mona.targets._row import TargetRow

LETTERS = "ABCD"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reader:
    """One reader, the `KIND` of its file.

    read: the rows of one file, in its order.
    read_between: the rows whose `task_id` is one of a split's, first and last included; None
        where rows have none.
    may_be_empty: whether a file without rows is as it should be, as long as another has some.
    from_hub: whether the rows of a hub's dataset are read too.
    made: what messages call the rows.
    """

    read: Callable[[DataFile], list[TargetRow]]
    read_between: Callable[[DataFile, tuple[int, int]], list[TargetRow]] | None = None
    may_be_empty: bool = False
    from_hub: bool = True
    made: str = "rows"


def records(file: DataFile) -> Iterator[RawRow]:
    """The rows of a JSONL, JSON or Parquet file, plain or compressed."""
    for row in read_rows(file):
        if isinstance(row, BadRow):
            raise RequestError(f"{row.file} row {row.line}: {row.reason}")
        yield row


def whole_text(file: DataFile) -> str:
    """The file as UTF-8 text."""
    try:
        with file.open() as stream:
            content = stream.read()
    except OSError as error:
        raise RequestError(f"{file.name}: {said(error)}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{file.name}: not UTF-8 (byte {error.start})") from None


def json_document(file: DataFile) -> Any:
    """The file as one JSON document."""
    try:
        return json.loads(whole_text(file))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file.name}: invalid JSON: {error}") from None


def csv_records(file: DataFile) -> list[list[str]]:
    """The records of a CSV file; blank lines are none."""
    reader = csv.reader(io.StringIO(whole_text(file), newline=""), strict=True)
    try:
        return [record for record in reader if record]
    except csv.Error as error:
        raise RequestError(f"{file.name} line {reader.line_num}: invalid CSV: {error}") from None


def stem(file: DataFile) -> str:
    """The file's name without its suffix."""
    return PurePosixPath(file.filename).stem


def row_error(file: DataFile, row: int, reason: str) -> RequestError:
    """The error for one row of a file."""
    return RequestError(f"{file.name} row {row}: {reason}")


def text(file: DataFile, row: int, data: Mapping[str, Any], field: str) -> str:
    """The field's text, to the letter; RequestError where it is absent, blank or no text."""
    value = data.get(field)
    if value is None:
        raise row_error(file, row, f"no field '{field}'")
    if not isinstance(value, str):
        raise row_error(file, row, f"field '{field}' is a {type(value).__name__}, not text")
    if not value.strip():
        raise row_error(file, row, f"field '{field}' is empty")
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise row_error(file, row, f"half a surrogate pair in field '{field}'")
    return value


def answer_text(file: DataFile, row: int, data: Mapping[str, Any], field: str) -> str | None:
    """The gold answer, None where the row has none (absent or null); blank is an error."""
    return None if data.get(field) is None else text(file, row, data, field)


def target_row(
    file: DataFile,
    row: int,
    *,
    user: str,
    assistant: str | None,
    subtask: str,
    question: str,
    references: Sequence[str] = (),
) -> TargetRow:
    """A row of one user turn and, unless it is None, one assistant turn."""
    turns = [Message("user", user)]
    if assistant is not None:
        turns.append(Message("assistant", assistant))
    return TargetRow(tuple(turns), subtask, file.name, row, question, tuple(references))


def question_with_options(question: str, options: Sequence[str]) -> str:
    """The user turn of a multiple-choice row."""
    lines = [option_line(index, option) for index, option in enumerate(options)]
    return "\n".join([question.strip(), *lines, "Answer:"])


def option_line(index: int, option: str) -> str:
    """One lettered option."""
    return f"{LETTERS[index]}. {option.strip()}"
