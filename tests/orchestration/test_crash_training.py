"""kill -9 during training and during evaluation, then `mona run`: the same answer, and nothing
half-made is shown as done."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from typing import Any, Literal

import pytest

from assets.evaluation import results_table
from assets.keys import evaluation, finetune, label
from orchestration.definitions import build_resources
from orchestration.home import open_instance
from tests.orchestration.conftest import TINY_FINETUNE, Project, findings
from tests.orchestration.test_crash import PRELOAD

pytest.importorskip("trl")
pytest.importorskip("lm_eval")

TUNED = label(finetune("eating", "mona"), "fruit|tiny")
MEASURED = label(evaluation("eating", "mona"), "fruit|tiny")
Place = Literal["training", "publishing", "evaluation"]


def run_and_die(config: str, place: Place) -> None:
    """`mona run`, killed after a checkpoint, before the tuned model's rename, or after the
    evaluation's first finished chunk."""
    from pathlib import Path

    from orchestration import cli

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "training":
        from mona import finetune_trainer

        inner = finetune_trainer._watch

        def watched(progress: Any, *rest: Any) -> Any:
            def counting(steps: int) -> None:
                progress(steps)
                if list(Path(config).parent.glob("store/scratch/finetune.*/checkpoint-*")):
                    die()

            return inner(counting, *rest)

        finetune_trainer._watch = watched
    elif place == "publishing":
        from assets import finetune as asset

        def dying(*_: Any, **__: Any) -> None:
            die()

        asset._describe = dying
    else:
        from mona.evaluation import run

        run.CHUNK_ROWS = 2
        write = run.write_whole

        def writing(*args: Any) -> None:
            write(*args)
            die()

        run.write_whole = writing
    sys.argv = ["mona", "run", "--recipe", "mona", "--config", config]
    cli.main()


def answer(project: Project) -> tuple[str, list[dict[str, Any]]]:
    """(the tuned model's digest, the rows of its evaluation)."""
    records = build_resources(project.config)["records"]
    rows = project.store.read(results_table("eating", "mona", "fruit", "tiny")).to_pylist()
    key = lambda row: (row["sample_id"], row["metric"])  # noqa: E731
    return records.get(records.current(TUNED)).data_version, sorted(rows, key=key)


def done(project: Project) -> set[str]:
    """What Dagster shows as made of the two."""
    found = set()
    with open_instance(project.config) as instance:
        for key in (finetune("eating", "mona"), evaluation("eating", "mona")):
            if instance.fetch_materializations(key, limit=1).records:
                found.add(label(key, "fruit|tiny"))
    return found


def test_a_killed_training_or_evaluation_ends_the_same(
    measured: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mona.evaluation import run

    monkeypatch.setattr(run, "CHUNK_ROWS", 2)
    measured.settings["targets"].pop("adding")
    measured.settings["recipes"] = {
        "mona": {"budget": {"count": 10}, "finetune": {**TINY_FINETUNE, "checkpoint_steps": 2}}
    }
    measured.run(upto="selection")
    store, saved = measured.root / "store", measured.root / "saved"
    shutil.copytree(store, saved)
    measured.run()
    wanted = answer(measured)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    places: list[tuple[Place, set[str]]] = [
        ("training", set()),
        ("publishing", set()),
        ("evaluation", {TUNED}),
    ]
    for place, made in places:
        shutil.rmtree(store)
        shutil.copytree(saved, store)
        child = server.Process(target=run_and_die, args=(str(measured.config_path), place))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, place
        assert done(measured) == made, place
        if not made:
            assert not list((store / "finetunes").rglob("*.safetensors")), place
        measured.run()
        assert answer(measured) == wanted, place
        assert done(measured) == {TUNED, MEASURED}
        assert findings(measured) == []
        assert not list((store / "scratch").glob("evaluation.*"))
