"""dolly: `instruction`, `context` and `response`."""

from __future__ import annotations

from mona.formats.base import Format, Row, text
from mona.sample import Message


def _convert(row: Row) -> list[Message]:
    return [
        Message("user", text(row, "instruction")),
        Message("assistant", text(row, "response")),
    ]


KIND = Format(
    # Before alpaca, which has `instruction` too; the context follows the question in any format.
    fits=lambda row: row.keys() >= {"instruction", "context", "response"},
    precedence=50,
    convert=_convert,
)
