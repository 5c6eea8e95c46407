"""Which test rows are measured: a seeded draw that takes every subtask in turn."""

from __future__ import annotations

from collections.abc import Sequence

from mona.draw import by_turns
from mona.sample import sample_id
from mona.targets import TargetRow


def draw_rows(rows: Sequence[TargetRow], count: int | None, seed: int) -> list[TargetRow]:
    """`count` rows, or all where there are fewer or `count` is None; in the order of the draw,
    whose first n are the draw of n.

    The subtasks take turns, each with its next row by lot of its id. Of rows with one id the
    first counts.
    """
    distinct = {sample_id(row.messages): row for row in reversed(rows)}
    return by_turns(((row.subtask, key, row) for key, row in distinct.items()), seed)[:count]
