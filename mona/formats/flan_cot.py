"""FLAN CoT: `question`, `answer` and `rationale`. The collection's own files have no header, so
there the source has to name the format.
"""

from __future__ import annotations

from mona.formats.base import Format, FormatError, Row, text
from mona.sample import Message

_COLUMNS = ("question", "answer", "rationale")


def _convert(row: Row) -> list[Message]:
    if "0" not in row:
        question, answer, rationale = (text(row, name) for name in _COLUMNS)
    else:
        # FLAN's files have no header and spell line breaks as \n.
        question, answer, rationale = (
            text(row, column).replace("\\n", "\n").strip() for column in ("0", "1", "2")
        )
    for name, value in zip(_COLUMNS, (question, answer, rationale), strict=True):
        if not value.strip():
            raise FormatError(f"field '{name}' is empty")
    return [
        Message("user", question),
        Message("assistant", f"{rationale}\nThe answer is {answer}."),
    ]


KIND = Format(
    fits=lambda row: row.keys() >= set(_COLUMNS), precedence=70, convert=_convert, header=_COLUMNS
)
