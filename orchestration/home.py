"""Dagster's persistent home inside the store, who is at work there, what a killed process left in
it, and being alone there.

A run holds a lock of its own for as long as its process lives: `mona run` from before Dagster
knows of it, a run of the UI or the daemon from before its first step. So a started run whose lock
is free is dead, whichever machine or container it ran in. How the home is made is
`orchestration.home_making`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg

from assets.keys import label
from assets.retries import FOREGROUND_TAG
from mona.errors import TakenError, WorkError
from orchestration.config import Config
from orchestration.configurations import note
from orchestration.engines import share_engines
from orchestration.home_making import make_home
from orchestration.home_settings import settle_settings
from orchestration.waits import make_waits_steady
from resources.locks import held, holder, taken
from resources.store import Store

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
# From a run's launch to its lock: a process starts and imports, on a busy machine too.
_LAUNCH_SECONDS = 300
LOOK_SECONDS = 1.0
_WATCH_SECONDS = 3.0
_SAY_SECONDS = 60.0
_HELD = ExitStack()  # what this process holds until it ends


def dagster_home(config: Config) -> str:
    """The folder for Dagster's history, made whole; the audit needs it to last."""
    home = config.home / "dagster"
    make_home(home)
    settle_settings(home)
    return str(home)


@contextmanager
def open_instance(config: Config) -> Iterator[dg.DagsterInstance]:
    """The instance of the configuration's home. WorkError where its disk is full, or where its
    history is damaged, at once or in the block."""
    config.home.mkdir(parents=True, exist_ok=True)
    require_room(str(config.home))
    note(config)
    os.environ["DAGSTER_HOME"] = home = dagster_home(config)
    share_engines()
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except Exception as error:
        damage = _damage_of_history(error)
        if damage is None:
            raise
        raise WorkError(
            f"{home}: Dagster's history is damaged ({damage}): mona lineage verify names the file; "
            "restore it from a backup"
        ) from error


def _damage_of_history(error: BaseException | None) -> str | None:
    """What SQLite says of a damaged file, from whatever wraps it; None of any other error."""
    # What wraps an error may be the context of what it wraps: a ring.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if type(error) is sqlite3.DatabaseError:
            return str(error)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def require_room(home: str) -> None:
    """WorkError where Dagster could not write a step's history: it would fail half-told."""
    free = shutil.disk_usage(home).free
    if free < _LEAST_FREE_BYTES:
        raise WorkError(f"{home}: the disk is full ({free:,} bytes are free)")


def run_here(job: dg.JobDefinition, instance: dg.DagsterInstance, **options: Any) -> None:
    """Runs a job in this process, holding its run's lock; the options are those of
    `execute_in_process`. `tags` may be among them."""
    make_waits_steady()
    run_id = str(uuid.uuid4())
    tags = {FOREGROUND_TAG: str(os.getpid()), **options.pop("tags", {})}
    with at_work(instance, run_id), _watched(instance, run_id):
        # In process, so that a loaded model serves every step and the bars reach the terminal.
        job.execute_in_process(
            instance=instance, run_id=run_id, run_config=QUIET, tags=tags, **options
        )


class Saying:
    """Says on standard error for whom one waits: at once, when that changes, and once a minute."""

    def __init__(self) -> None:
        self._last: tuple[str, float] | None = None

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self._last is None or self._last[0] != text or now - self._last[1] >= _SAY_SECONDS:
            print(f"waiting: {text}", file=sys.stderr, flush=True)
            self._last = (text, now)


@contextmanager
def _watched(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Beside a run, says for whom it waits where another took its place in a pool, and buries
    that one when it dies: Dagster waits for it in silence, and for ever."""
    from sqlalchemy.exc import OperationalError

    ended, said = threading.Event(), Saying()

    def look() -> None:
        for pool in instance.event_log_storage.get_concurrency_keys():
            found = instance.event_log_storage.get_concurrency_info(pool)
            if run_id in found.pending_run_ids:
                bury_dead_runs(instance)
                said(_full(instance, pool))

    def watch() -> None:
        while not ended.wait(_WATCH_SECONDS):
            # A database that is locked, or on a full disk, is the run's to report; the next look
            # asks again.
            with suppress(OperationalError):
                look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def in_the_way(
    instance: dg.DagsterInstance,
    keys: Collection[dg.AssetKey],
    partition: str | None,
    pools: Collection[str],
) -> str | None:
    """Who keeps these assets from being made now: a run that makes one of them, or those that
    take every place of a pool they need. None when nobody does."""
    for run in instance.get_runs(filters=ACTIVE_RUNS):
        same = set(keys) & set(run.asset_selection or ())
        if same and run.tags.get("dagster/partition") == partition:
            shown = who(instance, run.run_id)
            return f"run {run.run_id} is making {label(min(same), partition)} ({shown})"
    for pool in sorted(pools):
        found = instance.event_log_storage.get_concurrency_info(pool)
        if found.claimed_slots and len(found.claimed_slots) >= found.slot_count:
            return _full(instance, pool)
    return None


def _full(instance: dg.DagsterInstance, pool: str) -> str:
    found = instance.event_log_storage.get_concurrency_info(pool)
    runs = sorted({slot.run_id for slot in found.claimed_slots})
    shown = ", ".join(f"run {run_id} ({who(instance, run_id)})" for run_id in runs)
    return f"every place of the pool '{pool}' is taken by {shown or 'nobody: its limit is 0'}"


@contextmanager
def at_work(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Holds a run's lock while the block runs. WorkError when the run was given up meanwhile."""
    lock = _run_lock(instance, run_id)
    lock.parent.mkdir(parents=True, exist_ok=True)
    # Who looks for dead runs has it for a moment.
    with held(lock, f"run {run_id}", wait_seconds=10):
        run = instance.get_run_by_id(run_id)
        if run is not None and run.is_finished:
            raise WorkError(f"run {run_id} was given up before its process began: ask again")
        yield


def _run_lock(instance: dg.DagsterInstance, run_id: str) -> Path:
    return Path(instance.root_directory).parent / "locks" / "runs" / f"{run_id}.lock"


def build_executor(begin: Callable[[dg.DagsterInstance], object]) -> dg.ExecutorDefinition:
    """Every step of a run in one process, which holds the run's lock: what UI and daemon use.

    One process, since a model is then loaded once for all of its steps. `begin` is called first.
    """
    make_waits_steady()
    wrapped = dg.in_process_executor

    @dg.executor(name=wrapped.name, config_schema=wrapped.config_schema)  # type: ignore[call-overload]
    def in_process(context: dg.InitExecutorContext) -> dg.Executor:
        return _Held(wrapped.executor_creation_fn(context), begin)  # type: ignore[misc]

    return in_process


class _Held(dg.Executor):
    def __init__(self, inner: dg.Executor, begin: Callable[[dg.DagsterInstance], object]) -> None:
        self._inner = inner
        self._begin = begin

    @property
    def retries(self) -> Any:
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        # To the end of the process: the run goes on after its last step, until its end is told.
        _HELD.enter_context(at_work(plan_context.instance, plan_context.run_id))
        self._begin(plan_context.instance)
        yield from self._inner.execute(plan_context, execution_plan)


def bury_dead_runs(instance: dg.DagsterInstance) -> int:
    """Fails runs whose process is gone and frees the pool slots of all that have ended; returns
    how many were dead.

    After a kill -9 Dagster keeps such a run as started and its slot as taken for ever.
    """
    buried = 0
    folder = _run_lock(instance, "any").parent
    folder.mkdir(parents=True, exist_ok=True)
    active = {r.dagster_run.run_id: r for r in instance.get_run_records(filters=ACTIVE_RUNS)}
    for run_id in sorted({*active, *(path.stem for path in folder.glob("*.lock"))}):
        lock = _run_lock(instance, run_id)
        if not lock.exists() and _is_being_launched(active[run_id]):
            continue
        with suppress(TakenError), held(lock, f"run {run_id}"):
            # Under its lock it can't begin any more. It may have ended by itself meanwhile.
            run = instance.get_run_by_id(run_id)
            if run is not None and run_id in active and not run.is_finished:
                instance.report_run_failed(run, message="its process was gone")
                buried += 1
            for path in (lock, lock.with_suffix(".holder")):
                path.unlink(missing_ok=True)
    _free_slots(instance)
    return buried


def _is_being_launched(record: dg.RunRecord) -> bool:
    """Whether a run that never had its lock may still come to it. A clock that was set back
    makes its launch lie in the future: that is no reason to wait longer."""
    return abs(time.time() - record.update_timestamp.timestamp()) < _LAUNCH_SECONDS


def _free_slots(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        found = storage.get_concurrency_info(pool)
        waiting = {step.run_id for step in found.pending_steps}
        for run_id in {slot.run_id for slot in found.claimed_slots} | waiting:
            run = instance.get_run_by_id(run_id)
            if run is not None and run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def under_way(instance: dg.DagsterInstance) -> set[tuple[dg.AssetKey, str | None]]:
    """The asset partitions that runs are making or wait to make."""
    bury_dead_runs(instance)
    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED, *ACTIVE_RUNS.statuses])
    return {
        (key, run.tags.get("dagster/partition"))
        for run in instance.get_runs(filters=unfinished)
        for key in run.asset_selection or ()
    }


def who(instance: dg.DagsterInstance, run_id: str) -> str:
    """The process of a run, as people read it."""
    lock = _run_lock(instance, run_id)
    if taken(lock):
        return holder(lock)
    return "its process has not begun yet"


@contextmanager
def alone(
    config: Config, instance: dg.DagsterInstance, store: Store, name: str
) -> Iterator[Callable[[], None]]:
    """Holds the lock `name` and every lock that any step ever took; called again, what it gives
    takes those made since. TakenError, naming its process, when a run is at work."""
    mine = {name}
    with ExitStack() as stack:
        stack.enter_context(store.lock(name, withdrawing=True))
        bury_dead_runs(instance)

        def take() -> None:
            for run in instance.get_runs(filters=ACTIVE_RUNS, limit=1):
                shown = who(instance, run.run_id)
                raise TakenError(f"run {run.run_id} is at work ({shown}): wait or stop it")
            for path in sorted((config.home / "locks").glob("*.lock")):
                if path.stem not in mine:
                    stack.enter_context(store.lock(path.stem, withdrawing=True))
                    mine.add(path.stem)

        take()
        yield take
