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
import pyarrow.compute as pc

from assets.keys import (
    ACTIVATIONS,
    RAW_POOL,
    SAE_CODES,
    Partitions,
    both,
    by_dataset,
    by_model,
    dataset_and_model,
    examples,
    label,
    prototype,
    selection,
)
from assets.pools import CPU_POOL
from assets.prototype import read_prototype
from assets.raw_pool import pool_table
from assets.retries import retried
from assets.subset import contaminated, publish
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.selection import Selection, TopRanked
from mona.similarity import scan, scan_dense
from mona.spec import RecipeSpec
from resources.encoding_tables import pool_population
from resources.engine import progress_bar
from resources.records import Records
from resources.snapshot import Snapshot
from resources.store import Store
from resources.table_at import TableAt


@dataclass(frozen=True, slots=True)
class _Job:
    """One selection to make: its key and what it reads."""

    key: dg.AssetKey
    target: str
    recipe: str
    spec: RecipeSpec


def build_selections(
    targets: Sequence[str], recipes: Mapping[str, RecipeSpec], partitions: Partitions
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
        context: dg.AssetExecutionContext, store: Store, records: Records
    ) -> Iterator[dg.MaterializeResult[Any]]:
        dataset, name = dataset_and_model(context)
        chosen = [job for job in jobs if job.key in context.selected_asset_keys]
        reads = {job.key: _reads(job, dataset, name) for job in chosen}
        read = Snapshot.of(store, records, sorted({a for each in reads.values() for a in each}))
        unusable = contaminated(
            read, dataset, {job.target for job in chosen if job.spec.decontaminate}
        )
        for representation in sorted({job.spec.representation for job in chosen}):
            group = [job for job in chosen if job.spec.representation == representation]
            excluded = [unusable[job.target] if job.spec.decontaminate else {} for job in group]
            stored = _stored(read, dataset, name, representation)
            vectors = np.stack([_prototype(read, job, stored, name) for job in group])
            made = _rank(read, dataset, stored, group, excluded, vectors)
            for job, ranked, left_out in zip(group, made, excluded, strict=True):
                yield publish(
                    read,
                    job.key,
                    context.partition_key,
                    job.spec,
                    ranked,
                    left_out,
                    inputs=read.only(*reads[job.key]),
                    about={"codes": stored.meaning} if representation == "codes" else {},
                )

    return [select_samples]


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the samples are ranked by: the opened rows of a representation, and the fingerprint
    that says what they mean."""

    representation: str
    table: TableAt
    meaning: str


def _stored(read: Snapshot, dataset: str, model: str, representation: str) -> _Stored:
    asset = label(_encoding(representation), both(dataset, model))
    record, population = read.record(asset), pool_population(dataset)
    if representation == "codes":
        meaning = str(record.about["codes"])
        name = population.codes_table(model, meaning)
    else:
        meaning = str(record.about["encoder"])
        name = population.view_table(representation, meaning)
    return _Stored(representation, read.table(asset, name), meaning)


def _encoding(representation: str) -> dg.AssetKey:
    return SAE_CODES if representation == "codes" else ACTIVATIONS


def _reads(job: _Job, dataset: str, model: str) -> list[str]:
    """The asset partitions that one selection reads."""
    return [
        label(RAW_POOL, dataset),
        label(_encoding(job.spec.representation), both(dataset, model)),
        label(prototype(job.target), model),
        label(examples(job.target)),
    ]


def _asset_spec(job: _Job) -> dg.AssetSpec:
    return dg.AssetSpec(
        job.key,
        deps=[
            by_dataset(RAW_POOL),
            dg.AssetDep(_encoding(job.spec.representation)),
            by_model(prototype(job.target)),
            dg.AssetDep(examples(job.target)),
        ],
        group_name=job.target,
        code_version=fingerprint(
            code="2", recipe=job.spec.model_dump(mode="json", exclude={"finetune"})
        ),
        description=f"The samples recipe '{job.recipe}' chooses for target '{job.target}'.",
    )


def _prototype(read: Snapshot, job: _Job, stored: _Stored, model: str) -> np.ndarray:
    """The stored prototype, float32 [d]; only one made under the same fingerprint is found."""
    made = read.record(label(prototype(job.target), model))
    codes = str(made.about["codes"])
    if stored.representation == "codes":
        codes = stored.meaning
    elif made.about["encoder"] != stored.meaning:
        raise WorkError(
            f"{made.asset} was not made under fingerprint {stored.meaning}, which the pool's "
            f"{stored.representation} have: materialise {job.target}/prototype"
        )
    return read_prototype(read, job.target, model, codes, stored.representation)


def _rank(
    read: Snapshot,
    dataset: str,
    stored: _Stored,
    jobs: Sequence[_Job],
    excluded: Sequence[Mapping[str, str]],
    vectors: np.ndarray,
) -> list[Selection]:
    """One scan of the stored rows for all jobs that read the same representation. Rows of
    samples that left the pool are passed over."""
    pool = read.table(label(RAW_POOL, dataset), pool_table(dataset))
    present = pc.is_in(stored.table.sample_ids, pool.sample_ids)
    rows = int(pc.sum(present).as_py() or 0)
    tops = []
    for job, left_out in zip(jobs, excluded, strict=True):
        assert job.spec.budget is not None
        tops.append(TopRanked(job.spec.budget, rows, left_out.keys()))
    similarities = [job.spec.similarity for job in jobs]
    lengths: list[pa.Array] = []

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        # The scorers read only their own columns; the lengths ride along for token budgets.
        place = 0
        for batch in stored.table.scan(["sample_id", "length", *columns]):
            here = batch.filter(present.slice(place, batch.num_rows))
            place += batch.num_rows
            lengths.append(here.column("length"))
            yield here

    if stored.representation == "codes":
        scores = scan(batches(["l1", "indices", "values"]), vectors, similarities)
    else:
        scores = scan_dense(batches(["values"]), "values", vectors, similarities)
    with progress_bar(f"scoring {dataset}", rows, "samples") as advance:
        for ids, block in scores:
            size = lengths.pop(0)
            for column, top in enumerate(tops):
                top.add(ids, block[:, column], size)
            advance(len(ids))
    return [top.finish() for top in tops]
