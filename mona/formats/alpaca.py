"""alpaca: an `instruction` with an optional `input`, the answer in `output` (or `response`,
`generation`), earlier turns in `history`.
"""

from __future__ import annotations

from mona.formats._turns import history
from mona.formats.base import Format, FormatError, Row, joined, optional, text
from mona.sample import Message

_ANSWERS = ("output", "response", "generation")


def _convert(row: Row) -> list[Message]:
    answer = next((key for key in _ANSWERS if key in row), None)
    if answer is None:
        raise FormatError("no answer (output or response)")
    prompt = joined(text(row, "instruction"), optional(row, "input"))
    earlier = history(row, "history") if "history" in row else []
    return [*earlier, Message("user", prompt), Message("assistant", text(row, answer))]


KIND = Format(fits=lambda row: "instruction" in row, precedence=60, convert=_convert)
