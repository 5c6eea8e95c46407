"""Targets in the formats of instruction pools: a user's own examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mona.files import DataFile
from mona.formats import FormatError, to_messages
from mona.sample import Message
from mona.targets._row import TargetRow
from mona.targets.base import Reader, records, row_error, stem, text

_PROMPTS = ("prompt", "question", "instruction", "input")


def read_pool_format(file: DataFile) -> list[TargetRow]:
    """Rows of any format `mona.formats` knows, and rows whose only field is a prompt.

    The subtask is the file's name; the question is all user turns, one a line.
    """
    rows = []
    for raw in records(file):
        messages = _messages(file, raw.line, raw.data)
        question = "\n".join(turn.content for turn in messages if turn.role == "user")
        rows.append(TargetRow(messages, stem(file), file.name, raw.line, question))
    return rows


def _messages(file: DataFile, row: int, data: Mapping[str, Any]) -> tuple[Message, ...]:
    fields = {field: value for field, value in data.items() if value is not None}
    if len(fields) == 1 and fields.keys() <= set(_PROMPTS):
        return (Message("user", text(file, row, fields, *fields)),)
    try:
        (messages,) = to_messages(dict(data), "auto", "refuse")
    except FormatError as error:
        raise row_error(file, row, str(error)) from None
    # Examples stand for a task as a whole: which of their turns a trainer learns says nothing.
    return tuple(Message(turn.role, turn.content) for turn in messages)


KIND = Reader(read_pool_format)
