"""Is a model better for having been tuned on what was chosen?

The mixed pool of known sources, SmolLM2, three targets: LoRA on equal tokens chosen by MONA and
drawn at random with three seeds, beside the untouched model. Takes 55 minutes on two cores.
What is made stays under data/experiment, so that a run that was ended goes on where it stood.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from assets.evaluation import LOSS, results_table
from mona.evaluation.intervals import paired_bootstrap
from orchestration.config import load_config
from orchestration.definitions import build_definitions, build_resources
from orchestration.home import open_instance
from orchestration.planner import Choice, Standing
from orchestration.run import bring_up_to_date, observe
from orchestration.verify import read_audit, verify
from tests.acceptance.test_relevance import COT, DATA, settings, tydiqa_rows, write_rows
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.experiment

# 5 % of the pool's.
TOKENS = 13_000
SEEDS = (0, 1, 2)
# Short ones, so that so few tokens buy samples in number.
POOL = {"rows": 3500, "max_tokens": 160, "tokenizer": "smollm2", "seed": 0}
# A passage of TyDiQA comes before its answer: at 512 tokens most answers are cut off.
MAX_LENGTH = 1024
LOSS_ROWS = {"tydiqa": 50, "gsm8k": 64, "mbpp": 100}
# A batch of two: few samples make steps enough.
FINETUNE = {
    "epochs": 1,
    "batch_size": 2,
    "micro_batch_size": 2,
    "max_length": MAX_LENGTH,
    "dtype": "bfloat16",
}


def tuning_settings(root: Path) -> dict[str, Any]:
    given = settings(root)
    write_rows(root / "tydiqa.jsonl", tydiqa_rows())
    mixed = given["datasets"]["mixed"]
    for source in mixed["sources"]:
        # The longest are left out below: more are read than are wanted.
        if source["name"] not in COT:
            source["max_rows_per_file"] = 10_000
    mixed["subsample"] = POOL
    model = given["models"]["seed0"]
    model["sae"]["train"]["tokens"] = 300_000
    given["models"] = {"smollm2": {**model, "max_length": MAX_LENGTH}}
    targets = DATA / "targets"
    tests = {
        "tydiqa": {"path": str(targets / "tydiqa_goldp/*/*_dev.json")},
        "gsm8k": {"path": str(targets / "gsm8k/test.jsonl")},
        "mbpp": {"path": str(targets / "mbpp/mbpp.jsonl"), "task_ids": [11, 510]},
    }
    given["targets"] = {
        name: {
            **given["targets"][name],
            "test": test,
            "evaluation": {
                "rows": 4,
                "loss_rows": LOSS_ROWS[name],
                "max_new_tokens": 48,
                "allow_code_execution": True,
            },
        }
        for name, test in tests.items()
    }
    budget = {"tokens": TOKENS}
    given["recipes"] = {
        "mona": {"budget": budget, "finetune": FINETUNE},
        "base": {"selector": "none"},
        **{
            f"random{seed}": {
                "selector": "random",
                "seed": seed,
                "budget": budget,
                "finetune": FINETUNE,
            }
            for seed in SEEDS
        },
    }
    return given


def losses(store: Any, target: str, recipe: str) -> dict[str, tuple[float, int]]:
    rows = store.read(results_table(target, recipe, "mixed", "smollm2"), where=f"metric = '{LOSS}'")
    return {row["sample_id"]: (row["value"], row["tokens"]) for row in rows.to_pylist()}


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_the_chosen_teach_more_than_as_many_tokens_drawn_at_random() -> None:
    import numpy as np

    root = REPOSITORY / "data" / "experiment"
    root.mkdir(parents=True, exist_ok=True)
    file = root / "tuning.yaml"
    file.write_text(yaml.safe_dump(tuning_settings(root)), encoding="utf-8")
    config = load_config(file)
    resources = build_resources(config)
    with open_instance(config) as instance:
        observe(config, instance, resources)
        definitions = build_definitions(config)
        bring_up_to_date(config, definitions, instance, Choice(), announce=print)
        standing = Standing(instance, definitions.resolve_asset_graph(), config)
        assert verify(standing, read_audit(resources["records"]), resources["store"]) == []
    store = resources["store"]
    (codes,) = (name for name in store.table_names() if name.startswith("codes.mixed."))
    lengths = store.read(codes, ["n_tokens"]).column("n_tokens").to_pylist()
    print(f"{TOKENS} of {sum(lengths)} tokens in {len(lengths)} samples")
    worse = []
    for target in config.targets:
        by_recipe = {recipe: losses(store, target, recipe) for recipe in config.recipes}
        ids = sorted(by_recipe["mona"])
        tokens = np.array([by_recipe["mona"][row][1] for row in ids])
        sums = {r: np.array([found[row][0] for row in ids]) for r, found in by_recipe.items()}
        shown = {recipe: round(float(s.sum() / tokens.sum()), 3) for recipe, s in sums.items()}
        print(f"{target}: {len(ids)} rows, {tokens.sum()} tokens, loss {shown}")
        for seed in SEEDS:
            gap = paired_bootstrap(sums["mona"], sums[f"random{seed}"], 0, tokens)
            print(f"  mona less random{seed}: {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
            if gap.high >= 0:
                worse.append(f"{target} against random{seed}")
    assert worse == []
