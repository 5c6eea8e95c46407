"""How tuned models are measured: task metrics by lm-evaluation-harness, held-out loss, and
recipes side by side.

`run` asks and scores, `tasks` says what is asked, `scoring` what an answer is worth, `sandbox`
runs generated programs, `loss` needs none of them; `intervals` and `leaderboard` compare. Where
models and rows come from is not here, nor where results go.
"""

from __future__ import annotations

from mona.evaluation.harness import require_harness
from mona.evaluation.leaderboard import Standing, loss_standings, task_standings
from mona.evaluation.loss import HeldOutLoss, held_out_loss
from mona.evaluation.results import Evaluation, RowResult, SubtaskResult
from mona.evaluation.run import evaluate
from mona.evaluation.tasks import has_metric

__all__ = [
    "Evaluation",
    "HeldOutLoss",
    "RowResult",
    "Standing",
    "SubtaskResult",
    "evaluate",
    "has_metric",
    "held_out_loss",
    "loss_standings",
    "require_harness",
    "task_standings",
]
