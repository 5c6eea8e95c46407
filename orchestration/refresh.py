"""What is asked for again: sources by the clock, and what the conditions missed or what failed,
by a sensor that follows up and by the sweep.

What follows from a change is `orchestration.automation`; noticing changed files and commits
is `orchestration.sensors`; how often something is asked for is `orchestration.asking`.
"""

from collections import Counter
from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from assets.keys import RAW_POOL
from mona.fingerprint import fingerprint
from orchestration.asking import TRIES, Asking
from orchestration.automation import follows
from orchestration.config import Config
from orchestration.history import latest_before
from orchestration.home import under_way
from orchestration.planner import Choice, Standing, Step, label, states, steps
from resources.withdrawals import Withdrawals


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
    def sweep(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        edited = config.edited()
        if edited is not None:
            yield dg.SkipReason(f"{edited}: reload the definitions, or start mona ui anew")
            return
        assert context.repository_def is not None
        standing = Standing(context.instance, context.repository_def.asset_graph, config)
        making = under_way(context.instance)
        planned = steps(config, Choice())
        found = [
            step
            for step in due(standing, planned)
            if not any((key, step.partition) in making for key in step.keys)
        ]
        said = _summary(standing, planned, found)
        context.log.info(said)
        if not found:
            yield dg.SkipReason(said)
        for step in found:
            yield _request(step, f"{context.scheduled_execution_time:%Y%m%d%H%M}")

    return sweep


def _summary(standing: Standing, planned: list[Step], found: list[Step]) -> str:
    """What a sweep found, in one line."""
    counts = Counter(state.status for state in states(standing, planned))
    asked = ", ".join(_name(step) for step in found) or "nothing"
    shown = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{shown}; asked for: {asked}"


def _name(step: Step) -> str:
    return " ".join(label(key, step.partition) for key in step.keys)


def _request(step: Step, when: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{when} {_name(step)}",
        partition_key=step.partition,
        asset_selection=list(step.keys),
    )


def build_follow_up_sensor(config: Config) -> dg.SensorDefinition:
    """Asks again for what is still stale or missing while nothing makes it: what failed, what
    the conditions missed, and an SAE once its pools are there. On where `follow_changes` is."""

    @dg.sensor(
        name="follow_up",
        job_name=IMPLICIT_ASSET_JOB_NAME,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING
        if config.automation.follow_changes
        else dg.DefaultSensorStatus.STOPPED,
        description=f"Asks again for what failed or was missed: up to {TRIES} times, after ever "
        "longer, and anew when its inputs change.",
    )
    def follow_up(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        assert context.repository_def is not None
        edited = config.edited()
        if edited is not None:
            return dg.SkipReason(f"{edited}: reload the definitions, or start mona ui anew")
        pending = Withdrawals(config.home).unfinished()
        if pending:
            return dg.SkipReason(f"withdrawal {pending[0]} is not complete: mona run completes it")
        seen = context.instance.event_log_storage.get_maximum_record_id()
        before, _, asked = (context.cursor or "").partition(" ")
        # One look of patience: the conditions ask for most of it, in fewer runs.
        asking = Asking.read(asked, patience=1)
        if before == str(seen) and not asking.pending():
            return dg.SkipReason("nothing has happened since the last look")
        standing = Standing(context.instance, context.repository_def.asset_graph, config)
        making = under_way(context.instance)
        wanted = {_name(step): step for step in due(standing, steps(config, Choice()))}
        busy = {
            name
            for name, step in wanted.items()
            if any((key, step.partition) in making for key in step.keys)
        }
        inputs = {name: _inputs(standing, step) for name, step in wanted.items()}
        now = asking.look(inputs, busy)
        given_up = asking.given_up()
        for name in given_up:
            context.log.warning(
                f"{name}: asked for {TRIES} times, given up until its inputs change"
            )
        requests = [
            _request(wanted[name], f"{inputs[name]} {tried}") for name, tried in now.items()
        ]
        said = f"{len(wanted)} to be made, {len(busy)} at work, {len(given_up)} given up"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else said,
            cursor=f"{seen} {asking.cursor()}",
        )

    return follow_up


def _inputs(standing: Standing, step: Step) -> str:
    """What names the inputs of a step as they are: another name is another reason to ask."""
    found = {
        label(*parent): event.version if event is not None else ""
        for key in step.keys
        for parent in standing.above(key, step.partition, with_entries=True)
        for event in [latest_before(standing.instance, *parent, None)]
    }
    versions = {str(key): str(standing.graph.get(key).code_version) for key in step.keys}
    return fingerprint(inputs=found, code=versions)[:16]


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
