"""sharegpt: a JSON array of `conversations` (from: system, human, gpt, tool; value). A turn that is
not to be learned has a `weight` of 0.
"""

from __future__ import annotations

from mona.exports.base import (
    ExportFormat,
    Row,
    lineage,
    mark,
)

_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def _convert(row: Row) -> Row:
    turns = [
        {"from": _ROLES[turn["role"]], "value": turn["content"], **mark(turn)}
        for turn in row["messages"]
    ]
    return {"conversations": turns, **lineage(row)}


KIND = ExportFormat(_convert, "array")
