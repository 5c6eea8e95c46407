"""Evaluations and the leaderboard on a tiny model: what is measured, stored and ranked."""

from __future__ import annotations

from typing import Any

import dagster as dg
import numpy as np
import pytest

from assets.evaluation import LOSS
from assets.keys import evaluation, label, leaderboard
from orchestration.home import open_instance
from tests.orchestration.conftest import Project, findings

pytest.importorskip("trl")
pytest.importorskip("lm_eval")


def metadata(project: Project, key: dg.AssetKey) -> dict[str, Any]:
    with open_instance(project.config) as instance:
        (found,) = instance.fetch_materializations(key, limit=1).records
        assert found.asset_materialization is not None
        return dict(found.asset_materialization.metadata)


def test_every_recipe_is_measured_and_ranked(measured: Project) -> None:
    done = measured.run()
    for target in ("adding", "eating"):
        for recipe in ("mona", "random", "base"):
            assert label(evaluation(target, recipe), "fruit|tiny") in done.made
        assert label(leaderboard(target), "fruit|tiny") in done.made
    assert sum("controls/random/finetune" in name for name in done.made) == 1
    assert measured.run().made == []

    rows = measured.store.read("evaluation.eating.mona.fruit.tiny").to_pylist()
    ids = {row["sample_id"] for row in rows if row["metric"] != LOSS}
    assert len(ids) == 5
    lost = [row for row in rows if row["metric"] == LOSS]
    assert len(lost) == 5
    shown = metadata(measured, evaluation("eating", "mona"))
    loss = sum(row["value"] for row in lost) / sum(row["tokens"] for row in lost)
    assert shown[LOSS].value == pytest.approx(loss)
    # The tiny model learns the pool's letters: it must be better than the untouched one.
    base = metadata(measured, evaluation("adding", "base"))
    tuned = metadata(measured, evaluation("adding", "mona"))
    assert tuned[LOSS].value < base[LOSS].value
    assert "exact" not in " ".join(tuned)

    board = metadata(measured, leaderboard("adding"))
    order = [record.data["recipe"] for record in board[LOSS].records]
    values = [record.data["value"] for record in board[LOSS].records]
    assert sorted(values) == values
    assert order[-1] == "base"
    assert f"{LOSS} plot" in board
    assert findings(measured) == []

    # More rows to measure: no model is tuned again.
    measured.settings["targets"]["eating"]["evaluation"]["rows"] = 6
    again = measured.run().made
    assert {name.split("[")[0] for name in again} == {
        *(f"eating/{recipe}/evaluation" for recipe in ("mona", "random", "base")),
        "eating/leaderboard",
    }
    assert np.isfinite(metadata(measured, evaluation("eating", "base"))[LOSS].value)
