"""Which test rows are measured: a seeded draw that takes every subtask in turn."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from mona.sample import sample_id
from mona.targets import TargetRow


def draw_rows(rows: Sequence[TargetRow], count: int | None, seed: int) -> list[TargetRow]:
    """`count` rows, or all where there are fewer or `count` is None; in the order of the draw,
    whose first n are the draw of n.

    The subtasks take turns, each with its next row; a row's place in its subtask is SHA-256 of
    the seed and its id, so it depends neither on the order of files nor on other rows. Of rows
    with one id the first counts.
    """
    distinct = {sample_id(row.messages): row for row in reversed(rows)}
    lots: dict[str, list[tuple[bytes, TargetRow]]] = defaultdict(list)
    for row_id, row in distinct.items():
        lot = hashlib.sha256(f"{seed}:{row_id}".encode("ascii")).digest()
        lots[row.subtask].append((lot, row))
    turns = [
        (turn, lot, row)
        for drawn in lots.values()
        for turn, (lot, row) in enumerate(sorted(drawn, key=lambda pair: pair[0]))
    ]
    # Within a turn the subtasks come by lot too: a draw smaller than their number favours none.
    turns.sort(key=lambda entry: entry[:2])
    return [row for _, _, row in turns[:count]]
