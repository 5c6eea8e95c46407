"""mona.evaluation.leaderboard: order, and differences only where rows are shared."""

from __future__ import annotations

import numpy as np

from mona.evaluation.leaderboard import loss_standings, task_standings
from mona.evaluation.loss import HeldOutLoss
from mona.evaluation.results import Evaluation, RowResult, summarise


def evaluation(right: list[int], prefix: str = "r") -> Evaluation:
    rows = [RowResult(f"{prefix}{i}", "s", "", {"acc": float(v)}) for i, v in enumerate(right)]
    return summarise(rows, macro=False, seed=0)


def test_the_best_recipe_comes_first() -> None:
    found = {
        "random": evaluation([0, 0, 1, 0]),
        "mona": evaluation([1, 1, 1, 0]),
        "elsewhere": evaluation([1, 1, 0, 0], prefix="other"),
    }
    standings = task_standings(found, "acc", baseline="random", seed=0)
    assert [row.recipe for row in standings] == ["mona", "elsewhere", "random"]
    first, second, third = standings
    assert (first.metric, first.value, first.n) == ("acc", 0.75, 4)
    assert first.low < 0.75 < first.high
    assert first.difference is not None
    assert first.difference.value == 0.5
    assert second.difference is None
    assert third.difference is None
    assert task_standings(found, "f1", baseline=None, seed=0) == []


def test_the_lowest_loss_comes_first() -> None:
    ids, tokens = ["a", "b"], np.array([2, 3])
    found = {
        "full": HeldOutLoss(ids, np.array([4.0, 6.0]), tokens),
        "mona": HeldOutLoss(ids, np.array([2.0, 3.0]), tokens),
        "other": HeldOutLoss(["c", "b"], np.array([3.0, 4.0]), tokens),
    }
    standings = loss_standings(found, baseline="full", seed=0)
    assert [(row.recipe, row.value) for row in standings] == [
        ("mona", 1.0),
        ("other", 1.4),
        ("full", 2.0),
    ]
    assert standings[0].difference is not None
    assert standings[0].difference.value == -1.0
    assert standings[0].difference.high == -1.0
    assert standings[1].difference is None
