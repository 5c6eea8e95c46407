"""`<target>/<recipe>/selection` [dataset x model]: the ranked subsets.

All selections of a run are one step: those that read the same representation share one scan
of it, and all share one pass over the pool's text for decontamination.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.describe import picture, provenance, table
from assets.keys import (
    ACTIVATIONS,
    RAW_POOL,
    SAE_CODES,
    Partitions,
    by_dataset,
    by_model,
    dataset_and_model,
    examples,
    prototype,
    selection,
)
from assets.raw_pool import pool_table
from assets.targets import prototype_table, test_rows_table
from mona.decontamination import HeldOutIndex, find_all
from mona.errors import WorkError
from mona.fingerprint import fingerprint, rows_digest
from mona.selection import Candidates, Selection, select
from mona.similarity import scan_codes, scan_dense
from mona.spec import ModelSpec, RecipeSpec
from resources.encodings import pool_population
from resources.engine import progress_bar
from resources.models import Models
from resources.store import Store

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("length", pa.int32()),
        pa.field("source", pa.string()),
        pa.field("licence", pa.string()),
        pa.field(
            "origins",
            pa.list_(
                pa.struct(
                    [
                        ("source", pa.string()),
                        ("licence", pa.string()),
                        ("file", pa.string()),
                        ("line", pa.int64()),
                    ]
                )
            ),
        ),
    ]
)


def selection_table(target: str, recipe: str, dataset: str, model: str) -> str:
    """The Lance table of one selection; every materialisation is a tagged version of it."""
    return f"selection.{target}.{recipe}.{dataset}.{model}"


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
) -> dg.AssetsDefinition:
    """The subsettable multi-asset of every target's every recipe."""
    jobs = [
        _Job(selection(target, recipe), target, recipe, spec)
        for target in targets
        for recipe, spec in recipes.items()
    ]

    @dg.multi_asset(
        name="select_samples",
        specs=[_asset_spec(job) for job in jobs],
        partitions_def=partitions.dataset_model,
        can_subset=True,
    )
    def select_samples(
        context: dg.AssetExecutionContext, shelf: Models, store: Store
    ) -> Iterator[dg.MaterializeResult[Any]]:
        dataset, name = dataset_and_model(context)
        chosen = [job for job in jobs if job.key in context.selected_asset_keys]
        digest = str(shelf.current_record(name)["digest"])
        codes_fingerprint = shelf.codes_fingerprint(name, models[name], digest)
        population = pool_population(dataset)
        tables = {
            "codes": population.codes_table(name, codes_fingerprint),
            "dense": population.activations_table(shelf.encoder_fingerprint(name, models[name])),
        }
        contaminated = _contaminated(store, dataset, chosen)
        lengths = _lengths(store, tables["dense"])
        for representation in sorted({job.spec.representation for job in chosen}):
            group = [job for job in chosen if job.spec.representation == representation]
            candidates = _score(
                store, dataset, name, representation, group, tables, codes_fingerprint
            )
            for job in group:
                excluded = contaminated[job.target] if job.spec.decontaminate else {}
                made = select(
                    candidates.of(group.index(job)),
                    job.spec.budget,
                    excluded=excluded.keys(),
                    lengths=lengths,
                )
                yield _publish(store, job, dataset, name, made, excluded, codes_fingerprint)

    return select_samples


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
        code_version=fingerprint(code="1", recipe=job.spec.model_dump(mode="json")),
        description=f"The samples recipe '{job.recipe}' chooses for target '{job.target}'.",
    )
