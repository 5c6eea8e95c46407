"""Who is at work: runs that live, runs that died, and being alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.keys import SAE
from assets.pools import CPU_POOL, GPU_POOL
from mona.errors import TakenError, WorkError
from orchestration import home
from orchestration.config import Config
from orchestration.home import (
    Saying,
    alone,
    at_work,
    build_executor,
    bury_dead_runs,
    in_the_way,
    open_instance,
    under_way,
)
from resources.locks import taken
from resources.store import Store
from tests.orchestration.bare import homed_config
from tests.resources.test_locks import hold  # noqa: F401

Hold = Callable[..., "subprocess.Popen[str]"]
STARTED = dg.DagsterRunStatus.STARTED


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return homed_config(tmp_path)


@pytest.fixture
def instance(config: Config) -> Iterator[dg.DagsterInstance]:
    with open_instance(config) as instance:
        yield instance


@dg.op
def nothing() -> None:
    pass


@dg.job(executor_def=build_executor(lambda _: None))
def working() -> None:
    nothing()


@dg.asset(key=SAE)
def made() -> None:
    pass


making = dg.Definitions(assets=[made])


def a_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus = STARTED, **more: Any
) -> dg.DagsterRun:
    keys = more.pop("keys", None)
    job = making.resolve_implicit_global_asset_job_def() if keys else working
    return instance.create_run_for_job(job, status=status, asset_selection=keys, **more)


def lock_of(config: Config, run: dg.DagsterRun) -> Path:
    path = config.home / "locks" / "runs" / f"{run.run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


@pytest.mark.parametrize("before", [(), ("unshare", "--pid", "--fork", "--mount-proc")])
def test_a_run_lives_as_long_as_its_lock_is_held(
    config: Config,
    instance: dg.DagsterInstance,
    hold: Hold,  # noqa: F811
    before: tuple[str, ...],
) -> None:
    run = a_run(instance)
    process = hold(lock_of(config, run), *before)
    storage = instance.event_log_storage
    assert storage.claim_concurrency_slot(GPU_POOL, run.run_id, "step").is_claimed
    assert bury_dead_runs(instance) == 0
    assert status_of(instance, run) == STARTED
    assert not storage.claim_concurrency_slot(GPU_POOL, "other", "step").is_claimed
    subprocess.run(["pkill", "-9", "-P", str(process.pid)], check=False)
    process.kill()
    process.wait()
    while taken(lock_of(config, run)):  # the container's own process ends a moment later
        time.sleep(0.01)
    lock_of(config, run).touch()
    assert bury_dead_runs(instance) == 1
    assert status_of(instance, run) == dg.DagsterRunStatus.FAILURE
    assert storage.claim_concurrency_slot(GPU_POOL, "other", "step").is_claimed
    assert not lock_of(config, run).exists()
    assert bury_dead_runs(instance) == 0


@pytest.mark.parametrize("jump", [-2 * 365 * 86_400, 301])
def test_a_run_that_never_came_to_its_lock_is_given_up(
    config: Config, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    run = a_run(instance, dg.DagsterRunStatus.STARTING, keys=frozenset([SAE]))
    assert bury_dead_runs(instance) == 0
    assert under_way(instance) == {(SAE, None)}
    store = Store(root=config.store_root, home=str(config.home))
    with (
        pytest.raises(TakenError, match=f"run {run.run_id} is at work .its process has not begun"),
        alone(config, instance, store, "gc"),
    ):
        pass
    now = time.time() + jump
    monkeypatch.setattr(home.time, "time", lambda: now)
    assert bury_dead_runs(instance) == 1
    with alone(config, instance, store, "gc"):
        pass
    # Its process comes after all: nothing begins that nobody knows of.
    with pytest.raises(WorkError, match="was given up before its process began"):
        at_work(instance, run.run_id).__enter__()


def test_slots_of_runs_that_ended_are_freed(instance: dg.DagsterInstance) -> None:
    run = a_run(instance, dg.DagsterRunStatus.CANCELED)
    storage = instance.event_log_storage
    assert storage.claim_concurrency_slot(GPU_POOL, run.run_id, "step").is_claimed
    assert bury_dead_runs(instance) == 0
    assert storage.claim_concurrency_slot(GPU_POOL, "other", "step").is_claimed


def test_a_run_of_the_daemon_holds_its_lock_to_the_end_of_its_process(
    config: Config, instance: dg.DagsterInstance
) -> None:
    done = dg.execute_job(dg.reconstructable(working), instance=instance)
    assert done.success
    (run,) = instance.get_runs()
    assert taken(lock_of(config, run))
    home._HELD.close()
    assert not taken(lock_of(config, run))
    bury_dead_runs(instance)
    assert not lock_of(config, run).exists()


def test_alone_names_who_is_at_work(config: Config, instance: dg.DagsterInstance) -> None:
    store = Store(root=config.store_root, home=str(config.home))
    run = a_run(instance)
    with (
        at_work(instance, run.run_id),
        pytest.raises(TakenError, match=rf"run {run.run_id} is at work \(process \d+ on .*since"),
        alone(config, instance, store, "withdrawal"),
    ):
        pass
    # At the next asking it is dead, and nothing is refused.
    with alone(config, instance, store, "withdrawal") as again:
        again()


def test_who_is_in_the_way(config: Config, instance: dg.DagsterInstance) -> None:
    assert in_the_way(instance, [SAE], "tiny", [GPU_POOL]) is None
    run = a_run(instance, keys=frozenset([SAE]), tags={"dagster/partition": "tiny"})
    with at_work(instance, run.run_id):
        said = in_the_way(instance, [SAE], "tiny", [GPU_POOL])
        assert said is not None
        assert f"run {run.run_id} is making sae[tiny] (process " in said
        assert in_the_way(instance, [SAE], "other", [GPU_POOL]) is None
        instance.event_log_storage.claim_concurrency_slot(GPU_POOL, run.run_id, "sae")
        said = in_the_way(instance, [SAE], "other", [GPU_POOL, CPU_POOL])
        assert said is not None
        assert said.startswith(f"every place of the pool 'gpu' is taken by run {run.run_id} (")
        assert in_the_way(instance, [SAE], "other", [CPU_POOL]) is None


def test_waiting_is_said_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(home.time, "monotonic", lambda: now[0])
    said = Saying()
    for at, text in ((0, "a"), (5, "a"), (6, "b"), (65, "b"), (67, "b")):
        now[0] = at
        said(text)
    assert capsys.readouterr().err.split("\n") == ["waiting: a", "waiting: b", "waiting: b", ""]
