"""kill -9 at random moments of encoding: nothing committed is lost, nothing is encoded twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from orchestration.home import open_instance
from tests.orchestration.conftest import ForwardCount, Project
from tests.orchestration.test_incremental import codes_by_id

FRUIT = 120
# Forked from a process that has imported the heavy modules, a run starts at once.
PRELOAD = ["torch", "transformers", "dagster", "mona.encoder", "orchestration.definitions"]


@dataclass(frozen=True)
class Moment:
    """When to die: a random while after the n-th commit began, or in its place."""

    commit: int
    where: Literal["before", "inside", "after"]
    seconds: float


def moments(commits: int, count: int) -> list[Moment]:
    """Seeded moments, each after at least two whole commits; no two of three are next to each
    other."""
    draw = random.Random(0)
    places: tuple[Literal["before", "inside", "after"], ...] = ("before", "inside", "after")
    chosen = draw.sample(range(3, commits + 1, 2), 3)
    chosen += [draw.randint(3, commits) for _ in range(count - 3)]
    return [Moment(commit, places[i % 3], draw.uniform(0, 0.01)) for i, commit in enumerate(chosen)]


def run_and_die(config: str, moment: Moment) -> None:
    """`mona run` of one dataset's codes, killed at the moment."""
    from orchestration import cli
    from resources.store import Store

    append, seen = Store.append, 0

    def die_in(seconds: float) -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(self: Store, name: str, rows: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == moment.commit:
            if moment.where == "before":
                die_in(0)
            threading.Thread(
                target=die_in, args=(moment.seconds,), daemon=True
            ).start()  # dies while lance writes, or in the next forward pass
            if moment.where == "after":
                append(self, name, rows)
                die_in(0)
        append(self, name, rows)

    Store.append = dying  # type: ignore[method-assign]
    sys.argv = ["mona", "run", "--dataset", "fruit", "--upto", "sae_codes", "--config", config]
    cli.main()


def commits(project: Project, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many commits an undisturbed encoding makes."""
    from resources.store import Store

    count, append = 0, Store.append

    def counting(self: Store, name: str, rows: Any) -> None:
        nonlocal count
        count += 1
        append(self, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", counting)
        project.run(datasets=("fruit",), upto="sae_codes")
    return count


def chosen(project: Project) -> list[str]:
    return project.store.read("selection.adding.mona.fruit.tiny").column("sample_id").to_pylist()


@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.acceptance)])
def test_a_killed_run_goes_on_from_its_last_commit(
    project: Project, forwards: ForwardCount, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    # Without the token cache nothing of the SAE's own pass is left to encode from.
    project.settings["models"]["tiny"]["token_cache_gb"] = 0.0
    project.run(datasets=("fruit",), upto="prototype")
    store, saved = project.root / "store", project.root / "saved"
    shutil.copytree(store, saved)
    made = commits(project, monkeypatch)
    assert made >= 8
    project.run(datasets=("fruit",))
    reference, wanted = codes_by_id(project, "codes.fruit."), chosen(project)

    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    seen = []
    for moment in moments(made, count):
        shutil.rmtree(store)
        shutil.copytree(saved, store)
        child = server.Process(target=run_and_die, args=(str(project.config_path), moment))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, moment
        committed = len(codes_by_id(project, "codes.fruit."))
        seen.append(committed)
        forwards.take()
        project.run(datasets=("fruit",))
        assert forwards.take() == FRUIT - committed, moment
        found = codes_by_id(project, "codes.fruit.")
        assert found.keys() == reference.keys()
        for sample_id, code in reference.items():
            assert found[sample_id] == pytest.approx(code, rel=2e-3)
        assert chosen(project) == wanted
        with open_instance(project.config) as instance:
            for pool in instance.event_log_storage.get_concurrency_keys():
                info = instance.event_log_storage.get_concurrency_info(pool)
                assert not info.pending_steps
                assert info.active_slot_count == 0
    assert len(set(seen)) > 2  # the moments were different ones
