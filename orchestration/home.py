"""Dagster's persistent home inside the store, what a killed process left in it, and being alone
there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import dagster as dg
import psutil

from assets.pools import CPU_POOL
from mona.errors import WorkError
from orchestration.config import Config
from orchestration.home_settings import settle_settings
from resources.store import Store

PROCESS_TAG = "mona/process"
# The configuration of a run in this process: what happens is shown by us.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
ACTIVE_RUNS = dg.RunsFilter(
    statuses=[
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
)
_LEAST_FREE_BYTES = 2 * 2**20  # more than what Dagster's history of a run takes


def dagster_home(config: Config) -> str:
    """The folder for Dagster's history, made with telemetry off; the audit needs it to last."""
    home = config.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    settle_settings(home)
    return str(home)


@contextmanager
def open_instance(config: Config) -> Iterator[dg.DagsterInstance]:
    """The instance of the configuration's home. WorkError where its disk is full."""
    home = dagster_home(config)
    require_room(home)
    os.environ["DAGSTER_HOME"] = home
    with dg.DagsterInstance.get() as instance:
        storage = instance.event_log_storage
        if CPU_POOL not in storage.get_concurrency_keys():  # else the user's limit stays
            storage.set_concurrency_slots(CPU_POOL, os.cpu_count() or 1)
        yield instance


def require_room(home: str) -> None:
    """WorkError where Dagster could not write a step's history: it would fail half-told."""
    free = shutil.disk_usage(home).free
    if free < _LEAST_FREE_BYTES:
        raise WorkError(f"{home}: the disk is full ({free:,} bytes are free)")


def process_name() -> str:
    """This process as `pid-started`: a reused pid does not name it."""
    return f"{os.getpid()}-{psutil.Process().create_time():.0f}"


def _alive(name: str) -> bool:
    pid, _, started = name.partition("-")
    if not psutil.pid_exists(int(pid)):
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except psutil.NoSuchProcess:
        return False


def bury_dead_runs(instance: dg.DagsterInstance) -> int:
    """Fails runs whose process is gone and frees their pool slots; returns how many.

    After a kill -9 Dagster keeps such a run as started and its slot as taken for ever.
    """
    dead = [
        run
        for run in instance.get_runs(filters=ACTIVE_RUNS)
        if PROCESS_TAG in run.tags and not _alive(run.tags[PROCESS_TAG])
    ]
    for run in dead:
        instance.report_run_failed(run, message="its process was gone")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(dead)


@contextmanager
def alone(
    config: Config, instance: dg.DagsterInstance, store: Store, name: str
) -> Iterator[Callable[[], None]]:
    """Holds the lock `name` and every lock that any step ever took; called again, what it gives
    takes those made since. WorkError when a run is at work."""
    held = {name}
    with ExitStack() as stack:
        stack.enter_context(store.lock(name, withdrawing=True))
        bury_dead_runs(instance)

        def take() -> None:
            for run in instance.get_runs(filters=ACTIVE_RUNS, limit=1):
                raise WorkError(f"run {run.run_id} is at work: wait or stop it")
            for path in sorted((config.home / "locks").glob("*.lock")):
                if path.stem not in held:
                    stack.enter_context(store.lock(path.stem, withdrawing=True))
                    held.add(path.stem)

        take()
        yield take
