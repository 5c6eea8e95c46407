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
from mona.selection import Selection, TopRanked
from mona.similarity import scan, scan_dense
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
        for representation in sorted({job.spec.representation for job in chosen}):
            group = [job for job in chosen if job.spec.representation == representation]
            excluded = [contaminated[job.target] if job.spec.decontaminate else {} for job in group]
            vectors = np.stack(
                [
                    _prototype(store, job.target, name, codes_fingerprint, representation)
                    for job in group
                ]
            )
            table = tables["codes" if representation == "codes" else "dense"]
            made = _rank(store, dataset, table, representation, group, excluded, vectors)
            for job, ranked, left_out in zip(group, made, excluded, strict=True):
                versions = {
                    pool_table(dataset): store.version(pool_table(dataset)),
                    table: store.version(table),
                }
                yield _publish(
                    store, job, dataset, name, ranked, left_out, versions, codes_fingerprint
                )

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


def _contaminated(store: Store, dataset: str, jobs: Sequence[_Job]) -> dict[str, dict[str, str]]:
    """{target: {sample id: what it shares with a test row}} from one pass over the pool."""
    targets = sorted({job.target for job in jobs if job.spec.decontaminate})
    found: dict[str, dict[str, str]] = {job.target: {} for job in jobs}
    indexes = {}
    for target in targets:
        rows = store.read(test_rows_table(target), ["sample_id", "subtask", "question"])
        if rows.num_rows:
            columns = (rows.column(i).to_pylist() for i in range(3))
            indexes[target] = HeldOutIndex.build(zip(*columns, strict=True))
    if not indexes:
        return found
    total = store.count(pool_table(dataset))
    with progress_bar(f"checking {dataset} against test rows", total, "samples") as advance:
        for batch in store.scan(pool_table(dataset), ["sample_id", "messages"]):
            ids = batch.column(0).to_pylist()
            texts = [
                [message["content"] for message in messages]
                for messages in batch.column(1).to_pylist()
            ]
            for sample_id, hits in zip(ids, find_all(indexes, texts), strict=True):
                for target, hit in hits.items():
                    found[target][sample_id] = f"test row {hit.test_row}: {hit.matched}"
            advance(len(ids))
    return found


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
    tops = [
        TopRanked(job.spec.budget, pool_rows, left_out.keys())
        for job, left_out in zip(jobs, excluded, strict=True)
    ]
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


def _publish(
    store: Store,
    job: _Job,
    dataset: str,
    model: str,
    made: Selection,
    excluded: Mapping[str, str],
    versions: Mapping[str, int],
    codes_fingerprint: str,
) -> dg.MaterializeResult[Any]:
    """Writes the ranked rows, pins what they were chosen from, and describes them."""
    from mona.plots import bars, length_histogram, score_histogram

    pool = store.rows(pool_table(dataset), ["messages", "origins", "n_chars"], made.sample_ids)
    origins = pool.column("origins").to_pylist()
    rows = pa.Table.from_arrays(
        [
            pa.array(made.ranks, pa.int64()),
            pa.array(made.sample_ids, pa.string()),
            pa.array(made.scores, pa.float32()),
            pa.array(made.lengths, pa.int32()),
            pa.array([row[0]["source"] for row in origins], pa.string()),
            pa.array([row[0]["licence"] for row in origins], pa.string()),
            pa.array(origins, SELECTION_SCHEMA.field("origins").type),
        ],
        schema=SELECTION_SCHEMA,
    )
    name = selection_table(job.target, job.recipe, dataset, model)
    chosen = rows_digest(made.sample_ids)
    with store.lock(name):
        version = store.replace(name, rows.to_batches(), SELECTION_SCHEMA)
        tag = f"chosen-{chosen[:12]}"
        store.tag(name, tag, version)
        for table_name, read in versions.items():
            store.tag(table_name, f"{job.target}-{job.recipe}-{model}-{chosen[:12]}", read)
    report = made.report
    pool_mix, pool_chars = _pool_mix(store, dataset)
    chosen_mix: dict[str, int] = {}
    for row in origins:
        chosen_mix[row[0]["source"]] = chosen_mix.get(row[0]["source"], 0) + 1
    texts = pool.column("messages").to_pylist()
    top = [
        {
            "rank": int(made.ranks[i]),
            "score": round(float(made.scores[i]), 4),
            "source": origins[i][0]["source"],
            "prompt": texts[i][0]["content"][:160],
            "answer": texts[i][-1]["content"][:160],
            "sample_id": made.sample_ids[i],
        }
        for i in range(min(20, len(texts)))
    ]
    return dg.MaterializeResult(
        asset_key=job.key,
        data_version=dg.DataVersion(chosen),
        metadata={
            "dagster/row_count": report.chosen,
            "eligible": report.eligible,
            "contaminated and dropped": len(excluded),
            "tokens": report.tokens or 0,
            "budget met": report.budget_met,
            "best score": float(made.scores[0]),
            "last score": float(made.scores[-1]),
            "dropped rows": table(
                [{"sample_id": key, "why": why[:200]} for key, why in list(excluded.items())[:20]]
            ),
            "scores": picture(
                score_histogram(report.edges, report.pool_counts, report.chosen_counts),
                "scores of the pool and the chosen",
            ),
            "sources": picture(bars(pool_mix, chosen_mix), "source mix of pool and chosen"),
            "lengths": picture(
                length_histogram(pool_chars, pool.column("n_chars").to_numpy(), "characters"),
                "lengths of pool and chosen",
            ),
            "largest sources": table(
                [
                    {"source": source, "chosen": count, "in pool": pool_mix.get(source, 0)}
                    for source, count in sorted(chosen_mix.items(), key=lambda x: (-x[1], x[0]))[
                        :20
                    ]
                ]
            ),
            "top 20": table(top),
            "provenance": provenance(
                {key: str(value) for key, value in versions.items()},
                codes=codes_fingerprint,
                recipe=job.spec.model_dump(mode="json"),
                table=name,
                tag=tag,
            ),
        },
    )


def _pool_mix(store: Store, dataset: str) -> tuple[dict[str, int], np.ndarray]:
    """(samples by their first source, characters of each sample) of the whole pool."""
    mix: dict[str, int] = {}
    chars: list[np.ndarray] = []
    for batch in store.scan(pool_table(dataset), ["origins", "n_chars"]):
        first = pc.list_element(batch.column("origins"), 0)
        for entry in pc.value_counts(pc.struct_field(first, "source")).to_pylist():
            mix[entry["values"]] = mix.get(entry["values"], 0) + entry["counts"]
        chars.append(batch.column("n_chars").to_numpy())
    return mix, np.concatenate(chars)
