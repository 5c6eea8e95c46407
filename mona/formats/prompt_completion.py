"""prompt_completion: one of the pairs of `PAIRS`, each a text or a list of turns."""

from __future__ import annotations

import re
from collections.abc import Callable

from mona.formats._turns import as_message
from mona.formats.base import Format, FormatError, Row, text
from mona.sample import Message

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("inputs", "targets"),
    ("input", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("message_1", "message_2"),
)
_MARKER = re.compile(r"\s*### (Human|Assistant):\s*")


def _convert(row: Row) -> list[Message]:
    pair = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)
    if pair is None:
        raise FormatError("no prompt with a completion")
    return [*_side(row, pair[0], _marked_turns), *_side(row, pair[1], _answer)]


def _side(row: Row, field: str, as_turns: Callable[[str], list[Message]]) -> list[Message]:
    """One side of a pair: a text, or a list of turns."""
    value = row.get(field)
    if isinstance(value, list):
        return [as_message(turn) for turn in value]
    return as_turns(text(row, field))


def _answer(text: str) -> list[Message]:
    return [Message("assistant", text)]


def _marked_turns(prompt: str) -> list[Message]:
    """The turns of "### Human: ... ### Assistant: ...", or the prompt as one turn."""
    if not prompt.startswith("### Human:"):
        return [Message("user", prompt)]
    _, *marked = _MARKER.split(prompt)
    roles, contents = marked[::2], marked[1::2]
    # The last marker opens the answer.
    if roles[-1] == "Assistant" and not contents[-1].strip():
        roles, contents = roles[:-1], contents[:-1]
    return [
        Message("user" if role == "Human" else "assistant", content)
        for role, content in zip(roles, contents, strict=True)
    ]


KIND = Format(
    fits=lambda row: any(row.keys() >= set(pair) for pair in PAIRS),
    precedence=80,
    convert=_convert,
)
