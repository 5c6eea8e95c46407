"""Random and whole-pool controls: shared by all targets, decontaminated against all."""

from __future__ import annotations

from typing import Any

from tests.orchestration.conftest import Project, sums, verses


def chosen(project: Project, recipe: str) -> list[str]:
    return list(project.store.sample_ids(f"selection.controls.{recipe}.fruit.tiny").to_pylist())


def test_controls_are_shared_and_hold_no_target_s_test_rows(project: Project) -> None:
    project.settings["datasets"].pop("verse")
    # The second target's test rows lie verbatim in the pool.
    project.write_rows("verse_examples", verses(700, 4))
    long = {
        "instruction": "Write, in at least fourteen plain words, what the old gardener of the "
        "northern orchard said about pruning in spring.",
        "input": "",
        "output": "He said it was late.",
    }
    project.write_rows("verse_test", [long])
    project.write_rows("fruit", [*project.rows("fruit"), long])
    project.settings["targets"]["rhyming"] = {
        "reader": "pool",
        "examples": {"path": "verse_examples.jsonl"},
        "test": {"path": "verse_test.jsonl"},
    }
    recipes: dict[str, Any] = project.settings["recipes"]
    recipes["random"] = {"selector": "random", "budget": {"count": 30}}
    recipes["other"] = {"selector": "random", "budget": {"count": 30}, "seed": 1}
    recipes["whole"] = {"selector": "all"}
    done = project.run()
    assert sum(label.startswith("controls/random/selection") for label in done.made) == 1
    random, other, whole = (chosen(project, name) for name in ("random", "other", "whole"))
    pool = set(project.store.sample_ids("pool.fruit").to_pylist())
    assert len(pool) == 121
    assert len(set(whole)) == 120
    (planted,) = pool - set(whole)
    assert planted not in random + other
    assert len(set(random)) == len(set(other)) == 30
    assert 0 < len(set(random) & set(other)) < 30
    assert project.run().made == []

    # New rows take their own places: the random subset moves by no more than they do.
    project.write_rows("fruit", [*project.rows("fruit"), *sums(200, 6)])
    project.run()
    assert len(set(random) - set(chosen(project, "random"))) <= 6
