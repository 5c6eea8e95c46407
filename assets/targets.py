"""`<target>/examples` and `<target>/prototype` [model]: what a target task looks like, and
its codes under one model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.describe import provenance, table
from assets.entries import entries_read
from assets.keys import SAE, Partitions, examples, label, model_entry, prototype, target_entry
from assets.pools import CPU_POOL, GPU_POOL
from assets.retries import retried
from mona.codes import from_arrow
from mona.errors import RequestError
from mona.fingerprint import fingerprint
from mona.prototype import (
    balanced_dense_prototype,
    balanced_prototype,
    mean_dense_prototype,
    mean_prototype,
)
from mona.sample import sample_id
from mona.spec import Hub, ModelSpec, TargetFiles, TargetSpec
from mona.targets import (
    EXAMPLES_SCHEMA,
    TargetRow,
    choose_examples,
    held_out,
    read_target,
    to_table,
)
from resources.encodings import KEY, Encodings, examples_population
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Record, Records, sealed
from resources.sources import Sources
from resources.store import Store
from resources.withdrawals import Withdrawals

DENSE_VIEWS = ("mean", "weighted_mean", "mlp_topk")
PROTOTYPE_SCHEMA = pa.schema(
    [
        pa.field("representation", pa.string(), nullable=False),
        pa.field("values", pa.list_(pa.float32())),
    ]
)
_KEYED_EXAMPLES = pa.schema(
    [
        EXAMPLES_SCHEMA.field(0).with_metadata(KEY),
        *list(EXAMPLES_SCHEMA)[1:],
        pa.field("subtasks", pa.list_(pa.string())),
    ]
)


def test_rows_table(target: str) -> str:
    """The Lance table of a target's held-out test rows."""
    return f"test_rows.{target}"


def prototype_table(target: str, model: str, codes_fingerprint: str) -> str:
    """One row a representation: the prototype's dense float32 vector."""
    return f"prototype.{target}.{model}.{codes_fingerprint}"


def build_target(
    target: str, spec: TargetSpec, models: Mapping[str, ModelSpec], partitions: Partitions
) -> list[dg.AssetsDefinition]:
    """The two assets of one target."""

    @dg.asset(
        key=examples(target),
        deps=[target_entry(target)],
        group_name=target,
        code_version="2",
        pool=CPU_POOL,
        description="Representative examples of the target and its held-out test rows.",
    )
    @retried
    def target_examples(
        sources: Sources, store: Store, records: Records
    ) -> dg.MaterializeResult[Any]:
        def read(files: TargetFiles, part: str) -> list[TargetRow]:
            where = f"targets.{target}.{part}"
            if files.hub is None:
                found = sources.files(files, where)
                rows = read_target(spec.reader, found, task_ids=files.task_ids)
            else:
                rows = read_split(files, files.hub, part, where)
            return [row for row in rows if sample_id(row.messages) not in withdrawn]

        def read_split(files: TargetFiles, hub: Hub, part: str, where: str) -> list[TargetRow]:
            with sources.split_file(hub, where) as (commit, file):
                try:
                    rows = read_target(spec.reader, [file], task_ids=files.task_ids)
                except RequestError as error:
                    raise RequestError(f"{where}: hub dataset {hub.repo}: {error}") from error
            revisions[part] = commit
            return [replace(row, file=f"{hub.repo}@{commit}") for row in rows]

        revisions: dict[str, str] = {}
        withdrawn = Withdrawals(sources.home).forbidden().ids
        entry = sources.target_version(target, spec)
        chosen = choose_examples(
            read(spec.examples, "examples"),
            count=spec.examples_count,
            per_subtask=spec.examples_per_subtask,
            seed=spec.seed,
        )
        test = held_out(read(spec.test, "test"), chosen) if spec.test else []
        with store.lock(f"examples.{target}"):
            for name, rows in ((f"examples.{target}", chosen), (test_rows_table(target), test)):
                made = _distinct(rows)
                store.replace(name, made.cast(_KEYED_EXAMPLES).to_batches(), _KEYED_EXAMPLES)
        subtasks = sorted({row.subtask for row in chosen})
        version = fingerprint(
            examples=[[row_id, row.subtask] for row_id, row in _by_id(chosen)],
            test=[[row_id, row.question, *row.references] for row_id, row in _by_id(test)],
        )
        record = Record(
            asset=label(examples(target)),
            data_version=version,
            entries={label(target_entry(target)): entry},
            tables={
                name: sealed(store, name)
                for name in (f"examples.{target}", test_rows_table(target))
            },
            about={"revisions": revisions},
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version),
            metadata={
                "dagster/row_count": len(chosen),
                "held-out test rows": len(test),
                "subtasks": len(subtasks),
                **{f"commit of {part}": commit for part, commit in revisions.items()},
                "first examples": table(
                    [
                        {
                            "sample_id": sample_id(row.messages),
                            "subtask": row.subtask,
                            "prompt": row.messages[0].content[:300],
                            "answer": row.messages[-1].content[:300],
                        }
                        for row in chosen[:10]
                    ]
                ),
                **provenance(records.publish(record), record),
            },
        )

    @dg.asset(
        key=prototype(target),
        partitions_def=partitions.model,
        deps=[
            dg.AssetDep(examples(target)),
            SAE,
            model_entry("encoder"),
            model_entry("codes"),
        ],
        group_name=target,
        code_version=fingerprint(code="1", prototype=spec.prototype),
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
        model = models[name]
        inputs = records.read_at([label(examples(target)), label(SAE, name)])
        entries = entries_read(shelf, name, model, "encoder", "codes")
        sae, digest = shelf.current_sae(name)
        encodings = Encodings.of_model(
            examples_population(target), name, model, shelf, store, engine
        )
        codes_fingerprint = shelf.codes_fingerprint(name, model, digest)
        codes_table = encodings.population.codes_table(name, codes_fingerprint)
        count = len(encodings.sample_ids)
        with (
            store.lock(encodings.table),
            progress_bar(f"encoding {target} with {name}", count, "examples") as advance,
        ):
            report = encodings.sync(
                codes_table,
                codes_fingerprint,
                sae,
                k=model.k,
                pooling=model.pooling,
                progress=advance,
            )
            vectors = _prototypes(store, target, encodings, codes_table, sae.latents, spec)
            made = prototype_table(target, name, codes_fingerprint)
            batch = pa.table(
                [list(vectors), [vector.tolist() for vector in vectors.values()]],
                schema=PROTOTYPE_SCHEMA,
            )
            schema = PROTOTYPE_SCHEMA.with_metadata({b"fingerprint": codes_fingerprint.encode()})
            store.replace(made, batch.cast(schema).to_batches(), schema)
        labels = store.read(f"examples.{target}", ["sample_id", "subtasks"]).to_pydict()
        ids = fingerprint(rows=sorted(zip(labels["sample_id"], labels["subtasks"], strict=True)))
        codes = vectors["codes"]
        record = Record(
            asset=label(prototype(target), name),
            data_version=fingerprint(rows=ids, codes=codes_fingerprint, prototype=spec.prototype),
            inputs=inputs,
            entries=entries,
            tables={t: sealed(store, t) for t in (made, codes_table, encodings.table)},
            about={"examples": ids, "codes": codes_fingerprint},
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(record.data_version),
            metadata={
                "dagster/row_count": count,
                "examples run through the model": report.forwarded,
                "active latents": int((codes > 0).sum()),
                "L1": float(codes.sum()),
                "strongest latents": table(
                    [
                        {"latent": int(i), "mean activation": float(codes[i])}
                        for i in np.argsort(-codes, kind="stable")[:10]
                    ]
                ),
                **provenance(records.publish(record), record),
            },
        )

    return [target_examples, target_prototype]


def _by_id(rows: list[TargetRow]) -> list[tuple[str, TargetRow]]:
    return sorted(((sample_id(row.messages), row) for row in rows), key=lambda pair: pair[0])


def _distinct(rows: list[TargetRow]) -> pa.Table:
    """The rows as a table, one a sample id; `subtasks` keeps every occurrence, since
    benchmarks repeat examples and the prototype's mean runs over all of them."""
    made = to_table(rows)
    subtasks: dict[str, list[str]] = {}
    first: list[int] = []
    for i, row in enumerate(made.select(["sample_id", "subtask"]).to_pylist()):
        if row["sample_id"] not in subtasks:
            first.append(i)
        subtasks.setdefault(row["sample_id"], []).append(row["subtask"])
    occurrences = pa.array(list(subtasks.values()), pa.list_(pa.string()))
    return made.take(pa.array(first, pa.int64())).append_column("subtasks", occurrences)


def _prototypes(
    store: Store,
    target: str,
    encodings: Encodings,
    codes_table: str,
    latents: int,
    spec: TargetSpec,
) -> dict[str, np.ndarray]:
    """The prototype in every representation, from the stored rows of the examples."""
    rows = store.read(f"examples.{target}", ["sample_id", "subtasks"]).to_pydict()
    subtasks = dict(zip(rows["sample_id"], rows["subtasks"], strict=True))

    def every_occurrence(stored: pa.Table) -> tuple[pa.Table, list[str]]:
        ids = stored.column("sample_id").to_pylist()
        places = [i for i, sample_id in enumerate(ids) for _ in subtasks[sample_id]]
        labels = [label for sample_id in ids for label in subtasks[sample_id]]
        return stored.take(pa.array(places, pa.int64())), labels

    balanced = spec.prototype == "balanced"
    stored, labels = every_occurrence(store.read(codes_table))
    codes = from_arrow(stored)
    vectors = {
        "codes": balanced_prototype(codes, labels, latents)
        if balanced
        else mean_prototype(codes, latents)
    }
    views, labels = every_occurrence(store.read(encodings.table, ["sample_id", *DENSE_VIEWS]))
    for view in DENSE_VIEWS:
        column = views.column(view).combine_chunks()
        dense = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        vectors[view] = (
            balanced_dense_prototype(dense, labels) if balanced else mean_dense_prototype(dense)
        )
    return vectors
