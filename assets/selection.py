"""`<target>/<recipe>/selection` [dataset x model]: the ranked subsets.

All selections of a run are one step: those that read the same representation share one scan
of it, and all share one pass over the pool's text for decontamination.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.keys import (
    ACTIVATIONS,
    RAW_POOL,
    SAE_CODES,
    Partitions,
    by_dataset,
    by_model,
    dataset_and_model,
    examples,
    label,
    prototype,
    selection,
)
from assets.pools import CPU_POOL
from assets.retries import retried
from assets.subset import contaminated, publish
from assets.targets import prototype_table
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.selection import Selection, TopRanked
from mona.similarity import scan, scan_dense
from mona.spec import ModelSpec, RecipeSpec
from resources.encodings import pool_population
from resources.engine import progress_bar
from resources.models import Models
from resources.records import Records
from resources.store import Store


@dataclass(frozen=True, slots=True)
class _Job:
    """One selection to make: its key and what it reads."""

    key: dg.AssetKey
    target: str
    recipe: str
    spec: RecipeSpec


def build_selections(
    targets: Sequence[str],
    recipes: Mapping[str, RecipeSpec],
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> list[dg.AssetsDefinition]:
    """The subsettable multi-asset of every target's every recipe; none without recipes."""
    jobs = [
        _Job(selection(target, recipe), target, recipe, spec)
        for target in targets
        for recipe, spec in recipes.items()
        if not spec.is_control
    ]
    if not jobs:
        return []

    @dg.multi_asset(
        name="select_samples",
        specs=[_asset_spec(job) for job in jobs],
        partitions_def=partitions.dataset_model,
        can_subset=True,
        pool=CPU_POOL,
    )
    @retried
    def select_samples(
        context: dg.AssetExecutionContext, shelf: Models, store: Store, records: Records
    ) -> Iterator[dg.MaterializeResult[Any]]:
        dataset, name = dataset_and_model(context)
        chosen = [job for job in jobs if job.key in context.selected_asset_keys]
        inputs = {job.key: records.read_at(_reads(job, dataset, name)) for job in chosen}
        digest = str(shelf.current_record(name)["digest"])
        codes_fingerprint = shelf.codes_fingerprint(name, models[name], digest)
        population = pool_population(dataset)
        tables = {
            "codes": population.codes_table(name, codes_fingerprint),
            "dense": population.activations_table(shelf.encoder_fingerprint(name, models[name])),
        }
        unusable = contaminated(
            store, dataset, {job.target for job in chosen if job.spec.decontaminate}
        )
        for representation in sorted({job.spec.representation for job in chosen}):
            group = [job for job in chosen if job.spec.representation == representation]
            excluded = [unusable[job.target] if job.spec.decontaminate else {} for job in group]
            vectors = np.stack(
                [
                    _prototype(store, job.target, name, codes_fingerprint, representation)
                    for job in group
                ]
            )
            table = tables["codes" if representation == "codes" else "dense"]
            made = _rank(store, dataset, table, representation, group, excluded, vectors)
            for job, ranked, left_out in zip(group, made, excluded, strict=True):
                yield publish(
                    store,
                    records,
                    job.key,
                    dataset,
                    name,
                    job.spec,
                    ranked,
                    left_out,
                    inputs[job.key],
                    codes=codes_fingerprint,
                )

    return [select_samples]


def _reads(job: _Job, dataset: str, model: str) -> list[str]:
    """The asset partitions that one selection reads."""
    stored = SAE_CODES if job.spec.representation == "codes" else ACTIVATIONS
    return [
        label(RAW_POOL, dataset),
        label(stored, f"{dataset}|{model}"),
        label(prototype(job.target), model),
        label(examples(job.target)),
    ]


def _asset_spec(job: _Job) -> dg.AssetSpec:
    stored = SAE_CODES if job.spec.representation == "codes" else ACTIVATIONS
    return dg.AssetSpec(
        job.key,
        deps=[
            by_dataset(RAW_POOL),
            dg.AssetDep(stored),
            by_model(prototype(job.target)),
            dg.AssetDep(examples(job.target)),
        ],
        group_name=job.target,
        code_version=fingerprint(
            code="1", recipe=job.spec.model_dump(mode="json", exclude={"finetune"})
        ),
        description=f"The samples recipe '{job.recipe}' chooses for target '{job.target}'.",
    )


def _prototype(
    store: Store, target: str, model: str, codes_fingerprint: str, representation: str
) -> np.ndarray:
    """The stored prototype, float32 [d]; only one made under the same fingerprint is found."""
    name = prototype_table(target, model, codes_fingerprint)
    if not store.exists(name):
        raise WorkError(
            f"target '{target}' has no prototype of model '{model}' under fingerprint "
            f"{codes_fingerprint}: materialise {target}/prototype"
        )
    rows = store.read(name, where=f"representation = '{representation}'")
    return np.asarray(rows.column("values")[0].values, np.float32)


def _rank(
    store: Store,
    dataset: str,
    table: str,
    representation: str,
    jobs: Sequence[_Job],
    excluded: Sequence[Mapping[str, str]],
    vectors: np.ndarray,
) -> list[Selection]:
    """One scan of the stored rows for all jobs that read the same representation."""
    if not store.exists(table):
        raise WorkError(f"dataset '{dataset}' has no table '{table}': materialise its encoding")
    pool_rows = store.count(table)
    tops = []
    for job, left_out in zip(jobs, excluded, strict=True):
        assert job.spec.budget is not None
        tops.append(TopRanked(job.spec.budget, pool_rows, left_out.keys()))
    similarities = [job.spec.similarity for job in jobs]
    lengths: list[pa.Array] = []

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        # The scorers read only their own columns; the lengths ride along for token budgets.
        for batch in store.scan(table, ["sample_id", "length", *columns]):
            lengths.append(batch.column("length"))
            yield batch

    if representation == "codes":
        scores = scan(batches(["l1", "indices", "values"]), vectors, similarities)
    else:
        scores = scan_dense(batches([representation]), representation, vectors, similarities)
    with progress_bar(f"scoring {dataset}", pool_rows, "samples") as advance:
        for ids, block in scores:
            size = lengths.pop(0)
            for column, top in enumerate(tops):
                top.add(ids, block[:, column], size)
            advance(len(ids))
    return [top.finish() for top in tops]
