"""The asset keys, partition definitions and mappings that every asset module agrees on."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

RAW_POOL = dg.AssetKey(["raw_pool"])
SAE = dg.AssetKey(["sae"])
ACTIVATIONS = dg.AssetKey(["activations"])
SAE_CODES = dg.AssetKey(["sae_codes"])
DATASET_ENTRY = dg.AssetKey(["dataset_entry"])
MODEL_ENTRY_PARTS = ("encoder", "sae", "codes")


def model_entry(part: str) -> dg.AssetKey:
    """The observed part of a model's entry: encoder, sae or codes."""
    return dg.AssetKey(["model_entry", part])


def target_entry(target: str) -> dg.AssetKey:
    """The observed entry of a target with the content of its files."""
    return dg.AssetKey([target, "entry"])


def examples(target: str) -> dg.AssetKey:
    """Representative examples and held-out test rows."""
    return dg.AssetKey([target, "examples"])


def prototype(target: str) -> dg.AssetKey:
    """The target's codes and prototype under one model."""
    return dg.AssetKey([target, "prototype"])


def selection(target: str, recipe: str) -> dg.AssetKey:
    """The ranked subset of one recipe for one target."""
    return dg.AssetKey([target, recipe, "selection"])


class Partitions:
    """The three partition definitions that follow from the configured names."""

    def __init__(self, datasets: Iterable[str], models: Iterable[str]) -> None:
        self.dataset = dg.StaticPartitionsDefinition(list(datasets))
        self.model = dg.StaticPartitionsDefinition(list(models))
        self.dataset_model = dg.MultiPartitionsDefinition(
            {"dataset": self.dataset, "model": self.model}
        )


def by_dataset(key: dg.AssetKey) -> dg.AssetDep:
    """A dataset x model asset reads the dataset's partition of `key`."""
    return dg.AssetDep(key, partition_mapping=dg.MultiToSingleDimensionPartitionMapping("dataset"))


def by_model(key: dg.AssetKey) -> dg.AssetDep:
    """A dataset x model asset reads the model's partition of `key`."""
    return dg.AssetDep(key, partition_mapping=dg.MultiToSingleDimensionPartitionMapping("model"))


def dataset_and_model(context: dg.AssetExecutionContext) -> tuple[str, str]:
    """The two halves of a dataset x model partition key."""
    key = context.partition_key
    assert isinstance(key, dg.MultiPartitionKey)
    return key.keys_by_dimension["dataset"], key.keys_by_dimension["model"]
