"""mona.evaluation.draw: seeded, stratified, independent of order."""

from __future__ import annotations

from collections import Counter

from mona.evaluation.draw import draw_rows
from mona.sample import Message
from mona.targets import TargetRow

SIZES = {"a": 50, "b": 20, "c": 2}
ROWS = [
    TargetRow((Message("user", f"{subtask}{i}"),), subtask, "f", i, "")
    for subtask, size in SIZES.items()
    for i in range(size)
]


def test_every_subtask_takes_its_turn() -> None:
    assert Counter(row.subtask for row in draw_rows(ROWS, 6, 0)) == {"a": 2, "b": 2, "c": 2}
    assert Counter(row.subtask for row in draw_rows(ROWS, 12, 0)) == {"a": 5, "b": 5, "c": 2}
    assert {row.subtask for row in draw_rows(ROWS, 3, 7)} == set(SIZES)


def test_the_draw_is_seeded_nested_and_blind_to_order() -> None:
    drawn = draw_rows(ROWS, 20, 1)
    assert drawn == draw_rows(ROWS[::-1], 20, 1)
    assert drawn != draw_rows(ROWS, 20, 2)
    assert drawn[:7] == draw_rows(ROWS, 7, 1)
    # A known answer: the draw must stay the same on every machine and in every version.
    known = [row.messages[0].content for row in draw_rows(ROWS, 4, 0)]
    assert known == ["a12", "b4", "c1", "a13"]


def test_all_rows_where_fewer_exist_each_once() -> None:
    assert len(draw_rows(ROWS, 1000, 0)) == len(draw_rows(ROWS, None, 0)) == len(ROWS)
    assert len(draw_rows([*ROWS, *ROWS], None, 0)) == len(ROWS)
