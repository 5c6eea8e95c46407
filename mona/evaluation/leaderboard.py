"""A target's recipes side by side: table rows, best first, each with its difference to a
baseline where both were measured on the same rows. Drawing is `mona.plots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mona.evaluation.intervals import Interval, paired_bootstrap
from mona.evaluation.loss import HeldOutLoss
from mona.evaluation.results import Evaluation


@dataclass(frozen=True, slots=True)
class Standing:
    """One recipe on one metric: its value with the 95 % interval over `n` rows, and its
    difference to the baseline with the paired interval (None for the baseline itself, and
    where the rows differ)."""

    recipe: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    difference: Interval | None = None


def task_standings(
    evaluations: Mapping[str, Evaluation], metric: str, *, baseline: str | None, seed: int
) -> list[Standing]:
    """The recipes that have `metric`, the highest first.

    The difference is of row means. Where the value is a mean over subtasks it is no
    difference of the two values, but it tests the same rows.
    """
    base = evaluations.get(baseline) if baseline is not None else None
    standings = []
    for recipe, evaluation in evaluations.items():
        if metric not in evaluation.metrics:
            continue
        found = evaluation.metrics[metric]
        difference = None
        if base is not None and recipe != baseline:
            difference = _task_difference(evaluation, base, metric, seed)
        standings.append(
            Standing(recipe, metric, found.value, found.low, found.high, evaluation.n, difference)
        )
    return sorted(standings, key=lambda row: (-row.value, row.recipe))


def loss_standings(
    losses: Mapping[str, HeldOutLoss], *, baseline: str | None, seed: int
) -> list[Standing]:
    """The recipes by held-out loss, nats a token, the lowest first."""
    base = losses.get(baseline) if baseline is not None else None
    standings = []
    for recipe, loss in losses.items():
        found = loss.interval(seed)
        difference = None
        if base is not None and recipe != baseline and loss.pairs_with(base):
            difference = loss.minus(base, seed)
        n = len(loss.sample_ids)
        standings.append(
            Standing(recipe, "held-out loss", found.value, found.low, found.high, n, difference)
        )
    return sorted(standings, key=lambda row: (row.value, row.recipe))


def _task_difference(
    evaluation: Evaluation, base: Evaluation, metric: str, seed: int
) -> Interval | None:
    own, other = (
        {row.sample_id: row.metrics[metric] for row in found.rows if metric in row.metrics}
        for found in (evaluation, base)
    )
    if not own or own.keys() != other.keys():
        return None
    ids = sorted(own)
    return paired_bootstrap(
        np.array([own[row_id] for row_id in ids]), np.array([other[row_id] for row_id in ids]), seed
    )
