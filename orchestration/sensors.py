"""The sensors that notice changes: of entries and their files, and of revisions on a hub."""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.entries import entry_versions
from assets.keys import RAW_POOL, label
from mona.errors import MonaError
from orchestration.config import Config
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


def build_hub_sensor(config: Config) -> list[dg.SensorDefinition]:
    """Watches the revisions of hub datasets; none without one."""
    watched = {
        name: {source.name: source.hub for source in dataset.sources if source.hub is not None}
        for name, dataset in config.datasets.items()
    }
    watched = {name: hubs for name, hubs in watched.items() if hubs}
    if not watched:
        return []

    @dg.sensor(
        name="hub_revisions",
        target=[RAW_POOL],
        minimum_interval_seconds=600,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Reads a dataset again when a revision of its hub sources has moved.",
    )
    def hub_revisions(
        context: dg.SensorEvaluationContext, sources: Sources, records: Records
    ) -> dg.SensorResult:
        requests, silent = [], []
        for name, hubs in watched.items():
            # Compared with what the pool was made from, not with the last tick: a move between
            # the two, or a refresh that failed or was made by hand, would be lost.
            made = records.current(label(RAW_POOL, name))
            if made is None:
                continue
            try:
                read: dict[str, str] = records.get(made).about["revisions"]
                # A source that is new or withdrawn is the entry's business.
                now = {
                    source: sources.hub_commit(hub, f"datasets.{name}.sources.{source}")
                    for source, hub in hubs.items()
                    if source in read
                }
            except MonaError as error:
                silent.append(str(error))
                continue
            if any(read[source] != commit for source, commit in now.items()):
                # One request a move, though ticks come while it is being made.
                key = " ".join([name, made, *now.values()])
                requests.append(
                    dg.RunRequest(run_key=key, partition_key=name, asset_selection=[RAW_POOL])
                )
        if requests or not silent:
            for line in silent:
                context.log.warning(line)
            return dg.SensorResult(run_requests=requests)
        return dg.SensorResult(skip_reason="; ".join(silent))

    return [hub_revisions]


def build_entry_sensor(config: Config) -> dg.SensorDefinition:
    """Watches entries and files; on by default, it only records versions."""

    @dg.sensor(
        name="entries",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Records a new version for each entry or source file that changed.",
    )
    def entries(
        context: dg.SensorEvaluationContext, sources: Sources, shelf: Models
    ) -> dg.SensorResult:
        observed = list(changed_entries(config, context.instance, sources, shelf))
        return dg.SensorResult(asset_events=observed)

    return entries
