"""The sensor that keeps observed entries level with the configuration and its files."""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.entries import entry_versions
from orchestration.config import Config
from resources.models import Models
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
