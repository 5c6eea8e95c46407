"""The asset keys, partition definitions and mappings that every asset module agrees on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import dagster as dg

from mona.spec import RecipeSpec, TargetSpec
from resources.asset_partition import AssetPartition

RAW_POOL = dg.AssetKey(["raw_pool"])
SAE = dg.AssetKey(["sae"])
ACTIVATIONS = dg.AssetKey(["activations"])
SAE_CODES = dg.AssetKey(["sae_codes"])
DATASET_ENTRY = dg.AssetKey(["dataset_entry"])
CONTROLS = "controls"


def model_entry(part: str) -> dg.AssetKey:
    """The observed part of a model's entry: weights, encoder, sae or codes."""
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


def selection(owner: str, recipe: str) -> dg.AssetKey:
    """The ranked subset of one recipe for its owner: a target, or the controls."""
    return dg.AssetKey([owner, recipe, "selection"])


def finetune(owner: str, recipe: str) -> dg.AssetKey:
    """The model tuned on one subset."""
    return dg.AssetKey([owner, recipe, "finetune"])


def evaluation(target: str, recipe: str) -> dg.AssetKey:
    """A target's metrics of one recipe's model."""
    return dg.AssetKey([target, recipe, "evaluation"])


def leaderboard(target: str) -> dg.AssetKey:
    """A target's metrics of every recipe's model."""
    return dg.AssetKey([target, "leaderboard"])


def owner(target: str, recipe: RecipeSpec) -> str:
    """Whose subset a target's recipe uses: its own, or the one all targets share."""
    return CONTROLS if recipe.is_control else target


def subsets(targets: Iterable[str], recipes: Mapping[str, RecipeSpec]) -> list[tuple[str, str]]:
    """(owner, recipe) of every subset that is stored, targets' own first."""
    own = [(target, name) for target in targets for name, r in recipes.items() if not r.is_control]
    shared = [(CONTROLS, name) for name, r in recipes.items() if r.selector in ("random", "all")]
    return own + shared


def evaluations(
    targets: Mapping[str, TargetSpec], recipes: Mapping[str, RecipeSpec]
) -> list[tuple[str, str]]:
    """(target, recipe) of every evaluation: targets that are measured by recipes that train,
    or that are the base model."""
    return [
        (target, name)
        for target, spec in targets.items()
        if spec.evaluation is not None
        for name, recipe in recipes.items()
        if recipe.finetune is not None or recipe.selector == "none"
    ]


def label(key: dg.AssetKey, partition: str | None = None) -> str:
    """An asset partition as people write it: raw_pool[evals]."""
    return str(AssetPartition.of(key.path, partition))


def both(dataset: str, model: str) -> dg.MultiPartitionKey:
    """The dataset x model partition key of its two halves."""
    return dg.MultiPartitionKey({"dataset": dataset, "model": model})


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
