"""What a change re-runs: forward passes are counted at the embedding layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mona.codes import from_arrow
from tests.orchestration.conftest import ForwardCount, Project, sums, verses

POOL = 160
EXAMPLES = 6


def codes_by_id(project: Project, prefix: str) -> dict[str, dict[int, float]]:
    rows = project.store.read(project.table(prefix))
    codes = from_arrow(rows)
    return {
        sample_id: dict(
            zip(
                codes.indices[codes.indptr[i] : codes.indptr[i + 1]].tolist(),
                codes.values[codes.indptr[i] : codes.indptr[i + 1]].astype(float).tolist(),
                strict=True,
            )
        )
        for i, sample_id in enumerate(rows.column("sample_id").to_pylist())
    }


def test_each_sample_passes_the_model_once_and_a_second_run_runs_nothing(
    project: Project, forwards: ForwardCount
) -> None:
    done = project.run()
    assert forwards.take() == POOL + EXAMPLES
    assert not done.fresh
    again = project.run()
    assert forwards.take() == 0
    assert not again.made
    assert set(project.status().values()) == {"fresh"}


def test_new_and_removed_rows_cost_only_themselves(
    project: Project, forwards: ForwardCount
) -> None:
    project.first_run()
    forwards.take()
    before = codes_by_id(project, "codes.fruit.")
    project.write_rows("fruit", project.rows("fruit")[1:] + sums(300, 2))
    done = project.run()
    assert forwards.take() == 2
    after = codes_by_id(project, "codes.fruit.")
    pool = set(project.store.sample_ids("pool.fruit").to_pylist())
    (left,) = before.keys() - pool
    # The row that left keeps its code: a file that comes back costs nothing.
    assert after.keys() == pool | {left}
    assert all(after[key] == before[key] for key in before)
    assert "raw_pool[verse]" in done.fresh
    assert "sae[tiny]" in done.fresh  # a refreshed pool does not retrain


def test_a_row_that_left_is_never_chosen_and_comes_back_for_nothing(
    project: Project, forwards: ForwardCount
) -> None:
    project.settings["recipes"] |= {
        "everything": {"budget": {"share": 1.0}},
        "random": {"selector": "random", "budget": {"share": 1.0}},
    }
    rows = project.rows("fruit")
    project.run(datasets=("fruit",))
    project.write_rows("fruit", rows[10:])
    project.run(datasets=("fruit",))
    pool = set(project.store.sample_ids("pool.fruit").to_pylist())
    assert len(pool) == len(rows) - 10
    for owner in ("adding.everything", "controls.random"):
        chosen = project.store.sample_ids(f"selection.{owner}.fruit.tiny").to_pylist()
        assert sorted(chosen) == sorted(pool)
    forwards.take()
    project.write_rows("fruit", rows)
    project.run(datasets=("fruit",))
    assert forwards.take() == 0
    chosen = project.store.sample_ids("selection.adding.everything.fruit.tiny").to_pylist()
    assert len(chosen) == len(rows)


def test_reordered_file_changes_nothing_downstream(
    project: Project, forwards: ForwardCount
) -> None:
    project.first_run()
    forwards.take()
    project.write_rows("fruit", project.rows("fruit")[::-1])
    assert project.run().made == ["raw_pool[fruit]"]
    assert forwards.take() == 0


def test_changed_k_reads_the_token_cache_and_equals_a_fresh_run(
    project: Project, forwards: ForwardCount
) -> None:
    project.first_run()
    forwards.take()
    project.settings["models"]["tiny"]["k"] = 4
    status = project.status()
    assert status["sae[tiny]"] == "fresh"
    assert status["activations[fruit|tiny]"] == "fresh"
    assert status["sae_codes[fruit|tiny]"] == "stale"
    project.run()
    assert forwards.take() == 0
    store = project.store
    narrow = min(
        (name for name in store.table_names() if name.startswith("codes.fruit.")),
        key=lambda name: sum(len(b.column(0).values) for b in store.scan(name, ["indices"])),
    )
    from_cache = from_arrow(store.read(narrow))
    store.drop(narrow)
    store.drop(project.table("activations.fruit."))
    project.settings["models"]["tiny"]["token_cache_gb"] = 0.0
    with project.opened() as (_, definitions, instance):
        import dagster as dg

        from assets.keys import ACTIVATIONS, SAE_CODES

        definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[ACTIVATIONS, SAE_CODES],
            partition_key=dg.MultiPartitionKey({"dataset": "fruit", "model": "tiny"}),
        )
    assert forwards.take() == 120
    fresh = from_arrow(store.read(narrow))
    np.testing.assert_allclose(
        np.sort(from_cache.l1), np.sort(fresh.l1), rtol=2e-3, err_msg="cached against fresh"
    )


def test_new_target_encodes_only_its_examples(project: Project, forwards: ForwardCount) -> None:
    project.first_run()
    forwards.take()
    project.write_rows("verse_examples", verses(700, 4))
    project.settings["targets"]["rhyming"] = {
        "reader": "pool",
        "examples": {"path": "verse_examples.jsonl"},
    }
    done = project.run()
    assert forwards.take() == 4
    assert all("rhyming" in name for name in done.made)


@pytest.mark.parametrize(
    ("edit", "stale"),
    [
        (
            lambda s: s["datasets"]["verse"]["sources"][0].update(licence="MIT"),
            {"raw_pool[verse]"},
        ),
        (
            lambda s: s["models"]["tiny"].update(max_length=200),
            {
                "sae[tiny]",
                "activations[fruit|tiny]",
                "activations[verse|tiny]",
                "sae_codes[fruit|tiny]",
                "sae_codes[verse|tiny]",
                "adding/prototype[tiny]",
            },
        ),
        (lambda s: s["targets"]["adding"].update(seed=3), {"adding/examples"}),
        (lambda s: s["targets"]["adding"].update(prototype="balanced"), {"adding/prototype[tiny]"}),
        (
            lambda s: s["recipes"]["mona"].update(similarity="cosine"),
            {"adding/mona/selection[fruit|tiny]", "adding/mona/selection[verse|tiny]"},
        ),
    ],
    ids=["dataset", "model", "target", "prototype", "recipe"],
)
def test_an_edited_entry_makes_stale_only_what_reads_it(
    project: Project, edit: Callable[[dict], None], stale: set[str]
) -> None:
    project.first_run()
    edit(project.settings)
    status = project.status()
    assert {name for name, state in status.items() if state == "stale"} == stale
    untouched = {name for name, state in status.items() if state == "fresh"}
    assert untouched  # something must stay fresh in each case
    project.run()
    assert set(project.status().values()) == {"fresh"}


def test_relevant_rows_come_first(project: Project) -> None:
    project.first_run()
    rows = project.store.read("selection.adding.mona.fruit.tiny").to_pylist()
    texts = project.store.rows(
        "pool.fruit", ["messages"], [row["sample_id"] for row in rows]
    ).column("messages")
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert all(row["source"] == "fruit" and row["licence"] == "CC0-1.0" for row in rows)
    assert all("basket" in messages.as_py()[0]["content"] for messages in texts)


def test_a_test_row_in_the_pool_is_never_chosen(project: Project) -> None:
    planted = project.rows("test")[0]
    near = {**planted, "instruction": "Some twelve other words stand here in front of a basket."}
    project.write_rows("fruit", [planted, near, *project.rows("fruit")])
    project.settings["recipes"]["mona"]["budget"] = {"share": 1.0}
    project.first_run()
    chosen = project.store.read("selection.adding.mona.fruit.tiny")
    texts = project.store.rows("pool.fruit", ["messages"], chosen.column("sample_id").to_pylist())
    prompts = [messages.as_py()[0]["content"] for messages in texts.column("messages")]
    assert not any(planted["instruction"] in prompt for prompt in prompts)
    assert any(near["instruction"] in prompt for prompt in prompts)
