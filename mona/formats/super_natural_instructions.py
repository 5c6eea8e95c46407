"""Super-NaturalInstructions: a task's `definition` (or `Definition`) with the `input` and `output`
(`inputs`, `targets`) of one of its rows.
"""

from __future__ import annotations

from mona.formats.base import Format, Row, first_text, joined
from mona.sample import Message


def _convert(row: Row) -> list[Message]:
    definition = first_text(row, "Definition", "definition")
    prompt = joined(definition, first_text(row, "input", "inputs"))
    return [
        Message("user", prompt),
        Message("assistant", first_text(row, "output", "targets")),
    ]


KIND = Format(
    fits=lambda row: "definition" in row or "Definition" in row, precedence=40, convert=_convert
)
