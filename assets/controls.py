"""`controls/<recipe>/selection` [dataset x model]: the subsets that no target chose, made once
for all of them. A sample in any target's test rows is left out, so that every target can be
measured on the models they train."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from assets.keys import (
    ACTIVATIONS,
    CONTROLS,
    RAW_POOL,
    Partitions,
    by_dataset,
    dataset_and_model,
    examples,
    label,
    selection,
)
from assets.pools import CPU_POOL
from assets.retries import retried
from assets.subset import contaminated, publish
from mona.controls import draw_scores
from mona.fingerprint import fingerprint
from mona.selection import TopRanked
from mona.spec import Budget, ModelSpec, RecipeSpec
from resources.encodings import pool_population
from resources.models import Models
from resources.records import Records
from resources.store import Store


def build_controls(
    targets: Sequence[str],
    recipes: Mapping[str, RecipeSpec],
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> list[dg.AssetsDefinition]:
    """One asset for each recipe with selector `random` or `all`."""
    return [
        _control(name, recipe, targets, models, partitions)
        for name, recipe in recipes.items()
        if recipe.selector in ("random", "all")
    ]


def _control(
    recipe_name: str,
    recipe: RecipeSpec,
    targets: Sequence[str],
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> dg.AssetsDefinition:
    key = selection(CONTROLS, recipe_name)

    @dg.asset(
        key=key,
        partitions_def=partitions.dataset_model,
        deps=[
            by_dataset(RAW_POOL),
            dg.AssetDep(ACTIVATIONS),
            *(dg.AssetDep(examples(target)) for target in targets),
        ],
        group_name=CONTROLS,
        code_version=fingerprint(
            code="1", recipe=recipe.model_dump(mode="json", exclude={"finetune"})
        ),
        pool=CPU_POOL,
        description=f"The samples control '{recipe_name}' takes, whatever the target.",
    )
    @retried
    def control(
        context: dg.AssetExecutionContext, shelf: Models, store: Store, records: Records
    ) -> dg.MaterializeResult[Any]:
        dataset, name = dataset_and_model(context)
        inputs = records.read_at(
            [
                label(RAW_POOL, dataset),
                label(ACTIVATIONS, context.partition_key),
                *(label(examples(target)) for target in targets),
            ]
        )
        # Token budgets are counted by the model's tokenizer: its lengths lie with its views.
        lengths = pool_population(dataset).activations_table(
            shelf.encoder_fingerprint(name, models[name])
        )
        excluded: dict[str, str] = {}
        if recipe.decontaminate:
            for found in contaminated(store, dataset, targets).values():
                excluded.update(found)
        budget = recipe.budget or Budget(share=1.0)
        top = TopRanked(budget, store.count(lengths), excluded.keys())
        for batch in store.scan(lengths, ["sample_id", "length"]):
            ids = batch.column("sample_id")
            top.add(ids, draw_scores(ids.to_pylist(), recipe.seed), batch.column("length"))
        return publish(store, records, key, dataset, name, recipe, top.finish(), excluded, inputs)

    return control
