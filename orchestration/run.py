"""Bringing the chosen part of the graph up to date, in order, skipping what is fresh."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import dagster as dg

from assets.keys import SAE
from mona.errors import TakenError, WorkError
from orchestration.config import Config
from orchestration.damage import Soundness
from orchestration.home import (
    LOOK_SECONDS,
    Saying,
    bury_dead_runs,
    in_the_way,
    require_room,
    run_here,
)
from orchestration.limits import check_again
from orchestration.planner import Choice, Standing, Step, label, states, steps
from orchestration.sensors import changed_entries
from resources.locks import taken
from resources.withdrawals import Withdrawals


@dataclass(slots=True)
class Done:
    """What a run made and what it found fresh, as labels in order."""

    made: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def observe(config: Config, instance: dg.DagsterInstance, resources: dict[str, object]) -> int:
    """Records the entries that changed since they were last looked at; returns how many."""
    found = list(
        changed_entries(config, instance, resources["sources"], resources["shelf"])  # type: ignore[arg-type]
    )
    for observation in found:
        instance.report_runless_asset_event(observation)
    return len(found)


def begin(config: Config, resources: dict[str, object], instance: dg.DagsterInstance) -> None:
    """What a run of the UI or the daemon does before its first step: tells Dagster what the
    entries are as this process loaded them, since its event of a step names the newest version
    of each. WorkError where the file was edited meanwhile."""
    edited = config.edited()
    if edited is not None:
        raise WorkError(f"{edited}: launch the run again")
    observe(config, instance, resources)


def bring_up_to_date(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    choice: Choice,
    *,
    retrain_sae: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Done:
    """Materialises what is missing or stale of the choice, upstream first, after completing a
    withdrawal that was cut short.

    WorkError when a blocking check upstream failed or a table is damaged, KeyboardInterrupt at
    Ctrl-C or SIGTERM, and the failing step's own error when a step fails; what was made before
    stays, and the next call goes on from there.
    """
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    bury_dead_runs(instance)
    if Withdrawals(config.home).pending():
        _when_free(partial(_finish_withdrawals, config, definitions, instance))
    standing = Standing(instance, definitions.resolve_asset_graph(), config)
    job = definitions.resolve_implicit_global_asset_job_def()
    done = Done()
    planned = steps(config, choice)
    sound = Soundness(standing)
    sound.require_manifests(label(key, step.partition) for step in planned for key in step.keys)
    for step in planned:
        force = retrain_sae and step.keys == (SAE,)
        _when_free(partial(_bring, standing, sound, job, step, force, done, announce))
    for state in states(standing, planned):
        if state.status == "failed":
            raise WorkError(f"{label(state.key, state.partition)}: {state.why}")
    return done


def _finish_withdrawals(
    config: Config, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    from orchestration.definitions import build_resources
    from orchestration.withdrawal import finish_pending

    resources = build_resources(config)
    finish_pending(config, definitions, instance, resources["records"], resources["store"])
    observe(config, instance, resources)


def _bring(
    standing: Standing,
    sound: Soundness,
    job: dg.JobDefinition,
    step: Step,
    force: bool,
    done: Done,
    announce: Callable[[str], None],
) -> None:
    """Makes what is due of one step and runs those of its checks whose result is out of date."""
    instance = standing.instance
    due = [
        key
        for key in step.keys
        if force or standing.state(key, step.partition).status in ("missing", "stale")
    ]
    if due and _wait_for_places(standing, due, step.partition):
        # Who was waited for may have made it.
        standing.forget()
        return _bring(standing, sound, job, step, force, done, announce)
    fresh = [key for key in step.keys if key not in due]
    for key in fresh:
        checks = standing.due_checks(key, step.partition)
        made = standing.state(key, step.partition).status != "missing"
        if checks and made and step.partition is not None:
            check_again(job, instance, checks, step.partition)
            standing.forget()
    if due:
        edited = standing.config.edited()
        if edited is not None:
            raise WorkError(f"{edited}: mona run again; what was made stays")
        for key in due:
            failed = standing.failed_check(key, step.partition)
            if failed is not None:
                raise WorkError(f"{label(key, step.partition)} is blocked: {failed}")
            sound.require_inputs(key, step.partition)
        require_room(instance.root_directory)
        announce(", ".join(label(key, step.partition) for key in due))
        try:
            _execute(job, instance, step, due)
        finally:
            standing.forget()
        for key in due:
            found = standing.fault(key, step.partition)
            if found is not None:
                raise WorkError(f"{label(key, step.partition)}: {found}")
    done.fresh += [label(key, step.partition) for key in fresh]
    done.made += [label(key, step.partition) for key in due]
    return None


def _execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, step: Step, due: list[dg.AssetKey]
) -> None:
    from dagster._core.errors import DagsterAssetCheckFailedError
    from sqlalchemy.exc import OperationalError

    try:
        run_here(
            job, instance, asset_selection=due, partition_key=step.partition, raise_on_error=True
        )
    except DagsterAssetCheckFailedError:
        # What it found stands in its result, which the caller reads.
        return
    except dg.DagsterExecutionInterruptedError:
        # What Dagster makes of Ctrl-C and SIGTERM during a step; it has ended the run by now.
        raise KeyboardInterrupt from None
    except OperationalError as error:
        if "disk" not in str(error.orig):
            raise
        raise WorkError(f"the disk is full: Dagster's history ({error.orig})") from error


def _when_free(work: Callable[[], None]) -> None:
    """Does the work once nobody else holds what it needs, saying for whom it waits. Without end,
    since a lock goes with its process."""
    said = Saying()
    while True:
        try:
            return work()
        except TakenError as error:
            said(str(error))
            time.sleep(LOOK_SECONDS)
            while error.lock is not None and taken(error.lock):
                said(str(error))
                time.sleep(LOOK_SECONDS)


def _wait_for_places(standing: Standing, due: list[dg.AssetKey], partition: str | None) -> bool:
    """Waits until no living run makes the same, nor takes every place of a pool that it needs;
    returns whether it had to. A run that died is buried meanwhile."""
    pools = {pool for key in due for pool in standing.graph.get(key).pools}
    said = Saying()
    waited = False
    while (busy := in_the_way(standing.instance, due, partition, pools)) is not None:
        said(busy)
        waited = True
        time.sleep(LOOK_SECONDS)
        bury_dead_runs(standing.instance)
    return waited
