"""alpaca: a JSON array of instruction, input (always empty), output, system, history (the earlier
turns as [user, assistant] pairs). Turns have to alternate: neighbours of one role become one
turn, joined by a blank line.
"""

from __future__ import annotations

from mona.exports.base import (
    ExportFormat,
    Row,
    check_pairs,
    lineage,
    refuse_marks,
    split_system,
)


def _convert(row: Row) -> Row:
    refuse_marks(row, "alpaca")
    system, turns = split_system(row)
    check_pairs(row, turns, ("user",), "alpaca")
    texts = [turn["content"] for turn in turns]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=True)
    return {
        "instruction": instruction,
        "input": "",
        "output": output,
        "system": system,
        "history": [list(pair) for pair in history],
        **lineage(row),
    }


KIND = ExportFormat(_convert, "array")
