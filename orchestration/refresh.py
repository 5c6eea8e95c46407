"""What happens by the clock: sources read again, and a sweep for what the conditions missed.

What follows from a change is `orchestration.automation`; noticing changed files and commits
is `orchestration.sensors`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from assets.keys import RAW_POOL
from orchestration.automation import follows
from orchestration.config import Config
from orchestration.home import ACTIVE_RUNS, bury_dead_runs
from orchestration.planner import Choice, Standing, Step, label, steps

# A run that Dagster's daemon left behind as it died is shown as started for ever.
_LONGEST_RUN = timedelta(days=1)


def build_schedules(config: Config) -> list[dg.ScheduleDefinition]:
    """A schedule for each dataset with `refresh`, and the sweep where one is configured."""
    made = [
        _refresh(name, dataset.refresh)
        for name, dataset in config.datasets.items()
        if dataset.refresh is not None
    ]
    if config.automation.sweep is not None:
        made.append(_sweep(config, config.automation.sweep))
    return made


def _refresh(dataset: str, cron: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule=cron,
        name=f"refresh_{dataset}",
        target=[RAW_POOL],
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Reads the sources of '{dataset}' again; unchanged rows cost nothing.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(partition_key=dataset, asset_selection=[RAW_POOL])

    return refresh


def _sweep(config: Config, cron: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule=cron,
        name="sweep",
        # Dagster's own job of all assets: one of a selection can't mix partitions.
        job_name=IMPLICIT_ASSET_JOB_NAME,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Requests every stale or missing partition whose inputs are ready and that "
        "no run is making.",
    )
    def sweep(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        assert context.repository_def is not None
        standing = Standing(context.instance, context.repository_def.asset_graph, config)
        making = under_way(context.instance)
        for step in due(standing, steps(config, Choice())):
            if any((key, step.partition) in making for key in step.keys):
                continue
            keys = " ".join(label(key, step.partition) for key in step.keys)
            yield dg.RunRequest(
                run_key=f"{context.scheduled_execution_time:%Y%m%d%H%M} {keys}",
                partition_key=step.partition,
                asset_selection=list(step.keys),
            )

    return sweep


def under_way(instance: dg.DagsterInstance) -> set[tuple[dg.AssetKey, str | None]]:
    """The asset partitions that runs are making or wait to make."""
    bury_dead_runs(instance)
    unfinished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.QUEUED, *ACTIVE_RUNS.statuses],
        created_after=datetime.now(UTC) - _LONGEST_RUN,
    )
    return {
        (key, run.tags.get("dagster/partition"))
        for run in instance.get_runs(filters=unfinished)
        for key in run.asset_selection or ()
    }


def due(standing: Standing, planned: list[Step]) -> Iterator[Step]:
    """The stale and missing part of a plan that can be made now: nothing above it is stale,
    missing or failed a blocking check, and it follows without a hand."""
    for step in planned:
        ready = tuple(
            key
            for key in step.keys
            if follows(key, standing.config)
            and standing.state(key, step.partition).status in ("missing", "stale")
            and not standing.unready(key, step.partition)
            and standing.failed_check(key, step.partition) is None
        )
        if ready:
            yield Step(ready, step.partition)
