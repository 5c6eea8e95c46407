"""The sensors that notice changes: of entries and their files, and of revisions on a hub."""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.entries import entry_versions
from assets.keys import RAW_POOL, SAE, examples, label
from mona.errors import MonaError
from mona.spec import Hub
from orchestration.asking import TRIES, Asking
from orchestration.config import Config
from orchestration.home import bury_dead_runs, under_way
from orchestration.limits import check_again, moved_limits
from resources.models import Models
from resources.records import Records
from resources.sources import Sources


def changed_entries(
    config: Config, instance: dg.DagsterInstance, sources: Sources, shelf: Models
) -> Iterator[dg.AssetObservation]:
    """An observation for every entry whose version differs from the last one recorded."""
    now = entry_versions(config.datasets, config.models, config.targets, sources, shelf)
    for (key, partition), version in now.items():
        record = instance.get_latest_data_version_record(
            key, is_source=True, partition_key=partition
        )
        event = record.event_log_entry.asset_observation if record else None
        if event is None or (event.tags or {}).get(DATA_VERSION_TAG) != version:
            yield dg.AssetObservation(
                asset_key=key, partition=partition, tags={DATA_VERSION_TAG: version}
            )


# An asset partition -> what it reads of a hub: the name that its record has for each part, what
# is asked for, and the configuration's key for it.
_Watched = dict[tuple[dg.AssetKey, str | None], dict[str, tuple[Hub, str]]]


def _watched(config: Config) -> _Watched:
    found: _Watched = {}
    for name, dataset in config.datasets.items():
        for source in dataset.sources:
            if source.hub is not None:
                where = f"datasets.{name}.sources.{source.name}"
                found.setdefault((RAW_POOL, name), {})[source.name] = (source.hub, where)
    for name, target in config.targets.items():
        for part, files in (("examples", target.examples), ("test", target.test)):
            if files is not None and files.hub is not None:
                where = f"targets.{name}.{part}"
                found.setdefault((examples(name), None), {})[part] = (files.hub, where)
    return found


def build_hub_sensor(config: Config) -> list[dg.SensorDefinition]:
    """Watches the revisions of what datasets and targets read of a hub; none without it."""
    watched = _watched(config)
    if not watched:
        return []

    @dg.sensor(
        name="hub_revisions",
        target=sorted({key for key, _ in watched}),
        minimum_interval_seconds=600,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Reads a dataset or a target again when a revision it reads of a hub moved.",
    )
    def hub_revisions(
        context: dg.SensorEvaluationContext, sources: Sources, records: Records
    ) -> dg.SensorResult:
        found, silent = {}, []
        for (key, partition), parts in watched.items():
            # Compared with what the asset was made from, not with the last tick: a move between
            # the two, or a refresh that failed or was made by hand, would be lost.
            made = records.current(label(key, partition))
            if made is None:
                continue
            try:
                read: dict[str, str] = records.get(made).about["revisions"]
                # A part that is new or withdrawn is the entry's business.
                now = {
                    part: sources.hub_commit(hub, where)
                    for part, (hub, where) in parts.items()
                    if part in read
                }
            except MonaError as error:
                silent.append(str(error))
                continue
            if any(read[part] != commit for part, commit in now.items()):
                state = " ".join([made, *now.values()])
                found[label(key, partition)] = (key, partition, state)
        for line in silent:
            context.log.warning(line)
        # Asked for again where the run failed: what is there is still of the old commit.
        asking = Asking.read(context.cursor)
        making = under_way(context.instance) if found else set()
        busy = {name for name, (key, partition, _) in found.items() if (key, partition) in making}
        tries = asking.look({name: state for name, (_, _, state) in found.items()}, busy)
        for name in asking.given_up():
            context.log.warning(f"{name}: asked for {TRIES} times, given up until it moves again")
        requests = [
            dg.RunRequest(
                run_key=f"{name} {state} {tries[name]}",
                partition_key=partition,
                asset_selection=[key],
            )
            for name, (key, partition, state) in found.items()
            if name in tries
        ]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason="; ".join(silent) or None if not requests else None,
            cursor=asking.cursor(),
        )

    return [hub_revisions]


def build_entry_sensor(config: Config) -> dg.SensorDefinition:
    """Watches entries and files; on by default, it only records versions."""

    @dg.sensor(
        name="entries",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Records a new version for each entry or source file that changed, and what "
        "of a limit that was edited follows for its check; buries runs whose process is gone.",
    )
    def entries(
        context: dg.SensorEvaluationContext, sources: Sources, shelf: Models
    ) -> dg.SensorResult | dg.SkipReason:
        bury_dead_runs(context.instance)
        edited = config.edited()
        if edited is not None:
            return dg.SkipReason(f"{edited}: reload the definitions, or start mona ui anew")
        for model in moved_limits(config, context.instance):
            assert context.repository_def is not None
            job = context.repository_def.get_implicit_global_asset_job_def()
            known = context.repository_def.asset_graph.asset_check_keys
            checks = {check for check in known if check.asset_key == SAE}
            check_again(job, context.instance, checks, model)
        observed = list(changed_entries(config, context.instance, sources, shelf))
        return dg.SensorResult(asset_events=observed)

    return entries
