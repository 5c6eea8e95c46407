"""`controls/<recipe>/selection` [dataset x model]: the subsets that no target chose, made once
for all of them. A sample in any target's test rows is left out, so that every target can be
measured on the models they train."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow.compute as pc

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
from assets.raw_pool import pool_table
from assets.retries import retried
from assets.subset import contaminated, publish
from mona.controls import draw_scores
from mona.fingerprint import fingerprint
from mona.selection import Selection, TopRanked
from mona.spec import Budget, RecipeSpec
from resources.encoding_tables import pool_population
from resources.records import Records
from resources.snapshot import Snapshot
from resources.store import Store


def build_controls(
    targets: Sequence[str],
    recipes: Mapping[str, RecipeSpec],
    partitions: Partitions,
) -> list[dg.AssetsDefinition]:
    """One asset for each recipe with selector `random` or `all`."""
    return [
        _control(name, recipe, targets, partitions)
        for name, recipe in recipes.items()
        if recipe.selector in ("random", "all")
    ]


def _control(
    recipe_name: str,
    recipe: RecipeSpec,
    targets: Sequence[str],
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
            code="2", recipe=recipe.model_dump(mode="json", exclude={"finetune"})
        ),
        pool=CPU_POOL,
        description=f"The samples control '{recipe_name}' takes, whatever the target.",
    )
    @retried
    def control(
        context: dg.AssetExecutionContext, store: Store, records: Records
    ) -> dg.MaterializeResult[Any]:
        dataset, _ = dataset_and_model(context)
        pool, encoded = label(RAW_POOL, dataset), label(ACTIVATIONS, context.partition_key)
        shown = [label(examples(target)) for target in targets]
        read = Snapshot.of(store, records, [pool, encoded, *shown])
        excluded: dict[str, str] = {}
        if recipe.decontaminate:
            for found in contaminated(read, dataset, targets).values():
                excluded.update(found)
        return publish(
            read,
            key,
            context.partition_key,
            recipe,
            _draw(read, dataset, encoded, recipe, excluded),
            excluded,
        )

    return control


def _draw(
    read: Snapshot, dataset: str, encoded: str, recipe: RecipeSpec, excluded: Mapping[str, str]
) -> Selection:
    """The drawn samples. Token budgets are counted by the model's tokenizer, whose lengths lie
    with the activations; a sample it can't render truly is not drawn."""
    meaning = str(read.record(encoded).about["encoder"])
    stored = read.table(encoded, pool_population(dataset).activations_table(meaning))
    rows = stored.read(["sample_id", "length", "set_aside"])
    pool = read.table(label(RAW_POOL, dataset), pool_table(dataset)).sample_ids
    here = pc.and_(pc.is_in(rows.column("sample_id"), pool), pc.is_null(rows.column("set_aside")))
    rows = rows.filter(here)
    top = TopRanked(recipe.budget or Budget(share=1.0), rows.num_rows, excluded.keys())
    for batch in rows.to_batches():
        ids = batch.column("sample_id")
        top.add(ids, draw_scores(ids.to_pylist(), recipe.seed), batch.column("length"))
    return top.finish()
