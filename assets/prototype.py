"""`<target>/prototype` [model]: the codes of a target's examples under one model, and their
mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.describe import table
from assets.entries import entries_read
from assets.keys import SAE, Partitions, examples, label, model_entry, prototype
from assets.pools import GPU_POOL
from assets.retries import retried
from assets.step import finished
from assets.targets import examples_table
from mona import method
from mona.codes import from_arrow
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.prototype import (
    balanced_dense_prototype,
    balanced_prototype,
    mean_dense_prototype,
    mean_prototype,
)
from mona.spec import ModelSpec, RecipeSpec, TargetSpec, views_read
from resources.encoding_tables import examples_population
from resources.encodings import CodesOf, Encodings
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Records
from resources.snapshot import Snapshot
from resources.store import Store
from resources.table_at import TableAt

PROTOTYPE_SCHEMA = pa.schema(
    [
        pa.field("representation", pa.string(), nullable=False),
        pa.field("values", pa.list_(pa.float32())),
    ]
)


def prototype_table(target: str, model: str, codes_fingerprint: str) -> str:
    """One row a representation: the prototype's dense float32 vector."""
    return f"prototype.{target}.{model}.{codes_fingerprint}"


def read_prototype(
    read: Snapshot, target: str, model: str, codes_fingerprint: str, representation: str
) -> np.ndarray:
    """A target's prototype in one representation as its record sealed it, float32 [d].

    WorkError where it was made under another fingerprint, or without this representation."""
    asset = label(prototype(target), model)
    name = prototype_table(target, model, codes_fingerprint)
    if name not in read.record(asset).tables:
        raise WorkError(
            f"{asset} was not made under fingerprint {codes_fingerprint}, which the pool's codes "
            f"have: materialise {target}/prototype"
        )
    rows = read.table(asset, name).read(where=f"representation = '{representation}'")
    if not rows.num_rows:
        raise WorkError(f"{asset} has no '{representation}': materialise {target}/prototype")
    return np.asarray(rows.column("values")[0].values, np.float32)


def build_prototype(
    target: str,
    spec: TargetSpec,
    models: Mapping[str, ModelSpec],
    recipes: Mapping[str, RecipeSpec],
    partitions: Partitions,
) -> dg.AssetsDefinition:
    """The asset of one target for all configured models."""
    views = views_read(recipes.values())

    @dg.asset(
        key=prototype(target),
        partitions_def=partitions.model,
        deps=[dg.AssetDep(examples(target)), SAE, model_entry("encoder"), model_entry("codes")],
        group_name=target,
        code_version=fingerprint(
            code="2",
            prototype=spec.prototype,
            views=method.of_views(views),
            method=[method.CODES, method.PROTOTYPE],
        ),
        pool=GPU_POOL,
        description="The target's per-example codes and their mean, the prototype.",
    )
    @retried
    def target_prototype(
        context: dg.AssetExecutionContext,
        shelf: Models,
        store: Store,
        engine: Engine,
        records: Records,
    ) -> dg.MaterializeResult[Any]:
        name = context.partition_key
        shown, sae = label(examples(target)), label(SAE, name)
        read = Snapshot.of(store, records, [shown, sae])
        model = shelf.resolve(name, models[name])
        entries = entries_read(shelf, name, model.spec, "encoder", "codes")
        samples = read.table(shown, examples_table(target))
        population = examples_population(target)
        encodings = Encodings.of_model(population, samples, model, views, shelf, store, engine)
        digest = str(read.record(sae).about["sae"])
        codes = CodesOf.of_model(population, model, digest, shelf)
        count = len(samples.sample_ids)
        with store.lock(encodings.table):
            with progress_bar(f"encoding {target} with {name}", count, "examples") as advance:
                report = encodings.sync(codes, advance)
            rows = samples.read(["sample_id", "subtasks"])
            vectors = _prototypes(store, target, encodings, codes, rows, spec)
            made = prototype_table(target, name, codes.fingerprint)
            _write(store, made, codes.fingerprint, vectors)
            pairs = rows.to_pydict()
            ids = fingerprint(rows=sorted(zip(pairs["sample_id"], pairs["subtasks"], strict=True)))
            return finished(
                read,
                prototype(target),
                name,
                fingerprint(
                    rows=ids,
                    codes=codes.fingerprint,
                    prototype=[spec.prototype, method.PROTOTYPE],
                    views=method.of_views(views),
                ),
                entries=entries,
                tables=[made, codes.table, encodings.table, *encodings.view_tables.values()],
                about={"examples": ids, "codes": codes.fingerprint, "encoder": model.encoder},
                shown={
                    "dagster/row_count": count,
                    "examples run through the model": report.forwarded,
                    **_shown(vectors["codes"]),
                },
            )

    return target_prototype


def _shown(codes: np.ndarray) -> dict[str, Any]:
    strongest = np.argsort(-codes, kind="stable")[:10]
    return {
        "active latents": int((codes > 0).sum()),
        "L1": float(codes.sum()),
        "strongest latents": table(
            [{"latent": int(i), "mean activation": float(codes[i])} for i in strongest]
        ),
    }


def _write(store: Store, name: str, meaning: str, vectors: Mapping[str, np.ndarray]) -> None:
    schema = PROTOTYPE_SCHEMA.with_metadata({b"fingerprint": meaning.encode()})
    rows = pa.table(
        [list(vectors), [vector.tolist() for vector in vectors.values()]], schema=PROTOTYPE_SCHEMA
    )
    store.replace(name, rows.cast(schema).to_batches(), schema)


def _prototypes(
    store: Store,
    target: str,
    encodings: Encodings,
    codes: CodesOf,
    examples: pa.Table,
    spec: TargetSpec,
) -> dict[str, np.ndarray]:
    """The prototype in every representation, from the stored rows of the examples. An example
    that was set aside has no part in it; WorkError where all were."""
    subtasks = dict(zip(*examples.to_pydict().values(), strict=True))
    aside = store.newest(encodings.table).read(["sample_id", "set_aside"])
    aside = aside.filter(pc.is_valid(aside.column("set_aside")))
    gone = set(aside.column("sample_id").to_pylist())
    ids = [key for key in subtasks if key not in gone]
    if not ids:
        why = aside.column("set_aside")[0].as_py()
        raise WorkError(f"target '{target}': no example can be rendered: {why}")
    # Benchmarks repeat examples: the mean runs over every occurrence.
    labels = [label for key in ids for label in subtasks[key]]
    balanced = spec.prototype == "balanced"
    found = from_arrow(_rows(store.newest(codes.table), ["l1", "indices", "values"], ids, subtasks))
    latents = codes.sae.latents
    vectors = {
        "codes": balanced_prototype(found, labels, latents)
        if balanced
        else mean_prototype(found, latents)
    }
    for view, name in encodings.view_tables.items():
        column = _rows(store.newest(name), ["values"], ids, subtasks).column(0).combine_chunks()
        dense = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        vectors[view] = (
            balanced_dense_prototype(dense, labels) if balanced else mean_dense_prototype(dense)
        )
    return vectors


def _rows(
    stored: TableAt, columns: Sequence[str], ids: Sequence[str], subtasks: Mapping[str, list[str]]
) -> pa.Table:
    """The examples' rows, each as often as it occurs."""
    return stored.rows(columns, [key for key in ids for _ in subtasks[key]])
