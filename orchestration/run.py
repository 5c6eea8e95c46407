"""Bringing the chosen part of the graph up to date, in order, skipping what is fresh."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg

from assets.keys import SAE
from mona.errors import WorkError
from orchestration.config import Config
from orchestration.damage import Soundness
from orchestration.home import (
    PROCESS_TAG,
    QUIET,
    bury_dead_runs,
    dagster_home,
    process_name,
    require_room,
)
from orchestration.planner import Choice, Standing, Step, label, steps
from orchestration.sensors import changed_entries
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
        from orchestration.definitions import build_resources
        from orchestration.withdrawal import finish_pending

        resources = build_resources(config)
        finish_pending(config, definitions, instance, resources["records"], resources["store"])
        observe(config, instance, resources)
    standing = Standing(instance, definitions.resolve_asset_graph(), config)
    job = definitions.resolve_implicit_global_asset_job_def()
    done = Done()
    planned = steps(config, choice)
    sound = Soundness(standing)
    sound.require_manifests(label(key, step.partition) for step in planned for key in step.keys)
    for step in planned:
        force = retrain_sae and step.keys == (SAE,)
        due = [
            key
            for key in step.keys
            if force or standing.state(key, step.partition).status in ("missing", "stale")
        ]
        done.fresh += [label(key, step.partition) for key in step.keys if key not in due]
        if not due:
            continue
        for key in due:
            failed = standing.failed_check(key, step.partition)
            if failed is not None:
                raise WorkError(f"{label(key, step.partition)} is blocked: {failed}")
            sound.require_inputs(key, step.partition)
        require_room(dagster_home(config))
        announce(", ".join(label(key, step.partition) for key in due))
        _execute(job, instance, step, due)
        done.made += [label(key, step.partition) for key in due]
        standing.forget()
    return done


def _execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, step: Step, due: list[dg.AssetKey]
) -> None:
    from sqlalchemy.exc import OperationalError

    try:
        # In process, so that a loaded model serves every step and the bars reach the terminal.
        job.execute_in_process(
            instance=instance,
            asset_selection=due,
            partition_key=step.partition,
            run_config=QUIET,
            tags={PROCESS_TAG: process_name()},
            raise_on_error=True,
        )
    except dg.DagsterExecutionInterruptedError:
        # What Dagster makes of Ctrl-C and SIGTERM during a step; it has ended the run by now.
        raise KeyboardInterrupt from None
    except OperationalError as error:
        if "disk" not in str(error.orig):
            raise
        raise WorkError(f"the disk is full: Dagster's history ({error.orig})") from error
