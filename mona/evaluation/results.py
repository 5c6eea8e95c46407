"""What an evaluation found: rows, subtasks, and metrics with their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mona.evaluation.intervals import Interval, bootstrap_macro, bootstrap_mean, wilson


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: its id (of a named task: task and number), the answer given (of a choice: the
    letter) and the value of each metric."""

    sample_id: str
    subtask: str
    answer: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SubtaskResult:
    """The rows and the metrics' means of one subtask."""

    subtask: str
    n: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`metrics` has the headline metric first, each with its 95 % interval; `rows` are in the
    order of the draw; `data` is, of a named task, the commit of each repository it read."""

    metrics: Mapping[str, Interval]
    n: int
    subtasks: Sequence[SubtaskResult]
    rows: Sequence[RowResult]
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The name of the metric that recipes are ranked by."""
        return next(iter(self.metrics))


def summarise(rows: Sequence[RowResult], *, macro: bool, seed: int) -> Evaluation:
    """The metrics of rows: proportions with Wilson intervals, other means and, with `macro`,
    the mean over subtasks with bootstrap intervals."""
    by_subtask: dict[str, list[RowResult]] = defaultdict(list)
    for row in rows:
        by_subtask[row.subtask].append(row)
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    metrics = {}
    for name in names:
        having = [row for row in rows if name in row.metrics]
        values = np.array([row.metrics[name] for row in having])
        if macro and len(by_subtask) > 1:
            subtasks = np.array([row.subtask for row in having])
            metrics[name] = bootstrap_macro(values, subtasks, seed)
        elif np.isin(values, (0.0, 1.0)).all():
            metrics[name] = wilson(int(values.sum()), len(values))
        else:
            metrics[name] = bootstrap_mean(values, seed)
    table = [
        SubtaskResult(
            subtask,
            len(own),
            {
                name: float(np.mean([row.metrics[name] for row in own if name in row.metrics]))
                for name in names
                if any(name in row.metrics for row in own)
            },
        )
        for subtask, own in sorted(by_subtask.items())
    ]
    return Evaluation(metrics, len(rows), table, rows)
