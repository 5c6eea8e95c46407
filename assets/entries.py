"""Observed entries: the configuration and the files behind it, as data versions.

An edited entry or a changed file moves the version of one partition; nothing is read but
digests. Dagster's code_version is per asset, so entries that differ per partition show
here instead.
"""

from collections.abc import Mapping

import dagster as dg

from assets.keys import (
    DATASET_ENTRY,
    Partitions,
    label,
    model_entry,
    target_entry,
)
from mona.spec import DatasetSpec, ModelSpec, TargetSpec
from resources.asset_partition import MODEL_ENTRY_PARTS
from resources.models import Models
from resources.sources import Sources


def entry_versions(
    datasets: Mapping[str, DatasetSpec],
    models: Mapping[str, ModelSpec],
    targets: Mapping[str, TargetSpec],
    sources: Sources,
    shelf: Models,
) -> dict[tuple[dg.AssetKey, str | None], str]:
    """(asset key, partition) -> version of every entry as it is now.

    RequestError when a file that an entry names is missing.
    """
    versions: dict[tuple[dg.AssetKey, str | None], str] = {}
    for name, dataset in datasets.items():
        versions[DATASET_ENTRY, name] = sources.dataset_version(name, dataset, dict(models))
    for name, model in models.items():
        for part, version in shelf.entry_versions(name, model).items():
            versions[model_entry(part), name] = version
    for name, target in targets.items():
        versions[target_entry(name), None] = sources.target_version(name, target)
    return versions


def entries_read(shelf: Models, name: str, model: ModelSpec, *parts: str) -> dict[str, str]:
    """The versions of the parts of a model's entry that an asset reads, as its record holds
    them."""
    versions = shelf.entry_versions(name, model)
    return {label(model_entry(part), name): versions[part] for part in parts}


def build_entries(
    datasets: Mapping[str, DatasetSpec],
    models: Mapping[str, ModelSpec],
    targets: Mapping[str, TargetSpec],
    partitions: Partitions,
) -> list[dg.SourceAsset]:
    """The observable assets `dataset_entry`, `model_entry/*` and `<target>/entry`."""

    @dg.observable_source_asset(
        key=DATASET_ENTRY,
        group_name="pool",
        partitions_def=partitions.dataset,
        description="A dataset's entry in the configuration and the content of its files.",
    )
    def dataset_entry(sources: Sources) -> dg.DataVersionsByPartition:
        return dg.DataVersionsByPartition(
            {
                name: sources.dataset_version(name, dataset, dict(models))
                for name, dataset in datasets.items()
            }
        )

    observed: list[dg.SourceAsset] = [dataset_entry]
    for part in MODEL_ENTRY_PARTS:
        observed.append(_model_part(part, models, partitions))
    for name, target in targets.items():
        observed.append(_target(name, target))
    return observed


def _model_part(
    part: str, models: Mapping[str, ModelSpec], partitions: Partitions
) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=model_entry(part),
        group_name="models",
        partitions_def=partitions.model,
        description=f"The fields of a model's entry that its {part} depends on.",
    )
    def observed(shelf: Models) -> dg.DataVersionsByPartition:
        return dg.DataVersionsByPartition(
            {name: shelf.entry_versions(name, model)[part] for name, model in models.items()}
        )

    return observed


def _target(name: str, target: TargetSpec) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=target_entry(name),
        group_name=name,
        description="A target's entry in the configuration and the content of its files.",
    )
    def observed(sources: Sources) -> dg.DataVersion:
        return dg.DataVersion(sources.target_version(name, target))

    return observed
