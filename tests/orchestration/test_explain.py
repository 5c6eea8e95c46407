"""`mona explain` on a whole small project: the parts are those of the stored codes, whatever the
pool holds by now, and what can't be explained is one line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mona.codes import from_arrow
from tests.orchestration.conftest import Project, sums
from tests.orchestration.test_cli import mona, one_line


def explained(project: Project, sample: str, *words: str) -> Any:
    done = mona(project, "explain", "adding/mona", sample, "--dataset", "fruit", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def dense(project: Project, sample: str) -> tuple[np.ndarray, np.ndarray]:
    """A sample's stored code and the prototype, as float64 [d_sae]."""
    store = project.store
    stored = store.read(project.table("prototype.adding.tiny."), where="representation = 'codes'")
    prototype = np.asarray(stored.column("values")[0].values, np.float64)
    columns = ["l1", "indices", "values"]
    codes = from_arrow(store.rows(project.table("codes.fruit.tiny."), columns, [sample]))
    row = np.zeros(len(prototype))
    row[codes.indices] = codes.values.astype(np.float64)
    return row, prototype


def test_the_score_is_taken_apart(project: Project) -> None:
    project.first_run(datasets=("fruit",))
    chosen = project.store.read("selection.adding.mona.fruit.tiny").to_pylist()
    best = chosen[0]
    found = explained(project, best["sample_id"], "--limit", "5")
    row, prototype = dense(project, best["sample_id"])
    overlap, union = np.minimum(row, prototype), np.maximum(row, prototype).sum()
    assert found["rank"] == 1
    assert found["score"] == pytest.approx(best["score"], rel=1e-5)
    assert found["shared"] == int((overlap > 0).sum())
    assert found["pool_samples"] == 120
    assert len(found["latents"]) == 5
    largest = np.sort(overlap)[::-1][:5] / union
    assert [latent["part"]["part"] for latent in found["latents"]] == pytest.approx(largest)
    for latent in found["latents"]:
        name = latent["part"]["latent"]
        assert latent["part"]["part"] == pytest.approx(overlap[name] / union)
        assert latent["use"]["active"] >= 1
        assert latent["here"]["value"] >= latent["part"]["sample"]
        # A mean over tokens is at most its largest token.
        for (value, _), context in zip(latent["use"]["strongest"], latent["means"], strict=True):
            assert context["value"] >= value * (1 - 1e-3)


def test_a_sample_that_was_not_chosen_has_no_rank_and_text_is_shown(project: Project) -> None:
    project.first_run(datasets=("fruit",))
    chosen = project.store.sample_ids("selection.adding.mona.fruit.tiny").to_pylist()
    every = project.store.sample_ids("pool.fruit").to_pylist()
    left = next(sample for sample in every if sample not in chosen)
    done = mona(project, "explain", "adding/mona", left, "--dataset", "fruit")
    assert done.returncode == 0, done.stderr
    first, header, *rows = done.stdout.splitlines()
    assert "not chosen" in first
    assert "latents shared with the prototype" in first
    assert header.split()[:4] == ["latent", "of", "the", "score"]
    assert all("[" in row and "]" in row for row in rows)


def test_it_is_of_what_was_scored_not_of_what_the_pool_holds_by_now(project: Project) -> None:
    project.settings["datasets"]["fruit"]["max_loss"] = 1
    project.first_run(datasets=("fruit",))
    best = project.store.sample_ids("selection.adding.mona.fruit.tiny")[0].as_py()
    before = explained(project, best)
    project.write_rows("fruit", sums(3000, 30))
    project.run(datasets=("fruit",), upto="sae_codes")
    assert best not in project.store.sample_ids("pool.fruit").to_pylist()
    after = explained(project, best)
    assert after == before


def test_what_cannot_be_explained_is_one_line(project: Project) -> None:
    project.settings["recipes"] |= {
        "drawn": {"selector": "random", "budget": {"count": 5}},
        "near": {"similarity": "euclidean", "budget": {"count": 5}},
        "hidden": {"representation": "mean", "similarity": "cosine", "budget": {"count": 5}},
    }

    def refused(subset: str, sample: str) -> str:
        done = mona(project, "explain", subset, sample, "--dataset", "fruit")
        assert done.returncode == 2
        return one_line(done)

    assert "was never made" in refused("adding/mona", "0" * 32)
    project.run(datasets=("fruit",))
    sample = project.store.sample_ids("pool.fruit")[0].as_py()
    for subset, name, says in (
        ("adding/mona", "0" * 32, "scored no sample '000"),
        ("adding/near", sample, "no sum over shared latents"),
        ("adding/hidden", sample, "was not chosen by latents"),
        ("controls/drawn", sample, "was not chosen by latents"),
        ("adding/none", sample, "is no TARGET/RECIPE"),
    ):
        assert says in refused(subset, name)
    project.settings["models"]["tiny"]["k"] = 3
    assert "the entry of model 'tiny' changed since" in refused("adding/mona", sample)
