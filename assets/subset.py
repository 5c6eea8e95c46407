"""A ranked subset as it is stored and shown: what every selection and control writes.

Which rows are chosen, and by what score, is `assets.selection` and `assets.controls`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.describe import picture, provenance, table
from assets.keys import RAW_POOL, label
from assets.raw_pool import pool_table
from assets.targets import test_rows_table
from mona.decontamination import HeldOutIndex, find_all
from mona.fingerprint import rows_digest
from mona.selection import Selection
from mona.spec import RecipeSpec
from resources.engine import progress_bar
from resources.records import Record, Records, sealed
from resources.store import Store
from resources.withdrawals import Withdrawals

SUBSET_SCHEMA = pa.schema(
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


def subset_table(owner: str, recipe: str, dataset: str, model: str) -> str:
    """The Lance table of one selection; every materialisation is a tagged version of it."""
    return f"selection.{owner}.{recipe}.{dataset}.{model}"


def read_subset(
    store: Store, records: Records, subset: Record, dataset: str
) -> list[dict[str, Any]]:
    """A subset's rows, best first, with their `messages`: both at the versions that its record
    names, whatever the pool holds by now. `messages` is None for a sample withdrawn since."""
    ((name, seal),) = subset.tables.items()
    rows: list[dict[str, Any]] = store.read(name, version=seal.version).to_pylist()
    pool = records.get(subset.inputs[label(RAW_POOL, dataset)]).tables[pool_table(dataset)]
    gone = Withdrawals(records.home).gone_from(dataset)
    kept = [row["sample_id"] for row in rows if row["sample_id"] not in gone]
    texts = store.rows(pool_table(dataset), ["messages"], kept, version=pool.version)
    by_id = dict(zip(kept, texts.column("messages").to_pylist(), strict=True))
    for row in rows:
        row["messages"] = by_id.get(row["sample_id"])
    return rows


def origin_counts(origins: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """(source, licence, samples) from the origins of a subset's rows, most first; a merged
    duplicate counts once in each of its pairs."""
    pairs = Counter(
        pair
        for row in origins
        for pair in {(origin["source"], origin["licence"]) for origin in row}
    )
    return [
        {"source": source, "licence": licence, "samples": count}
        for (source, licence), count in sorted(pairs.items(), key=lambda x: (-x[1], x[0]))
    ]


def contaminated(store: Store, dataset: str, targets: Iterable[str]) -> dict[str, dict[str, str]]:
    """{target: {sample id: what it shares with a test row}} from one pass over the pool."""
    found: dict[str, dict[str, str]] = {target: {} for target in sorted(targets)}
    indexes = {}
    for target in found:
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


def publish(
    store: Store,
    records: Records,
    key: dg.AssetKey,
    dataset: str,
    model: str,
    recipe: RecipeSpec,
    made: Selection,
    excluded: Mapping[str, str],
    inputs: Mapping[str, str],
    **about: Any,
) -> dg.MaterializeResult[Any]:
    """Writes the ranked rows of `key`, pins all they were chosen from (`inputs`, as records),
    and describes them; `about` goes into the record."""
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
            pa.array(origins, SUBSET_SCHEMA.field("origins").type),
        ],
        schema=SUBSET_SCHEMA,
    )
    owner, recipe_name, _ = key.path
    name = subset_table(owner, recipe_name, dataset, model)
    chosen = rows_digest(made.sample_ids)
    with store.lock(name):
        version = store.replace(name, rows.to_batches(), SUBSET_SCHEMA)
        tag = f"chosen-{chosen[:12]}"
        store.tag(name, tag, version)
        seal = sealed(store, name)
    record = Record(
        asset=label(key, f"{dataset}|{model}"),
        data_version=chosen,
        inputs=dict(inputs),
        tables={name: seal},
        about={"recipe": recipe.model_dump(mode="json", exclude={"finetune"}), "tag": tag, **about},
    )
    digest = records.publish(record)
    records.pin(store, digest)
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
        asset_key=key,
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
            **provenance(digest, record),
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
