"""A ranked subset as it is stored and shown: what every selection and control writes.

Which rows are chosen, and by what score, is `assets.selection` and `assets.controls`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.describe import picture, table
from assets.keys import RAW_POOL, examples, label
from assets.raw_pool import pool_table
from assets.step import finished
from assets.targets import test_rows_table
from mona.decontamination import HeldOutIndex, find_all
from mona.fingerprint import rows_digest
from mona.selection import Selection
from mona.spec import RecipeSpec
from resources.asset_partition import AssetPartition
from resources.engine import progress_bar
from resources.snapshot import Snapshot
from resources.table_at import TableAt

# In a subset's record: how many test rows of its targets the pool could be compared with.
TEST_ROWS = "test rows"
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


def read_subset(read: Snapshot, subset: str, dataset: str) -> list[dict[str, Any]]:
    """The rows of a subset (an asset partition of the snapshot), best first, with their
    `messages`: both at the versions that its record names, whatever the pool holds by now.
    `messages` is None for a sample withdrawn since."""
    (name,) = read.record(subset).tables
    rows: list[dict[str, Any]] = read.table(subset, name).read().to_pylist()
    above = Snapshot(read.store, read.records, dict(read.record(subset).inputs))
    pool = above.table(label(RAW_POOL, dataset), pool_table(dataset))
    gone = read.records.ledger.gone_from(dataset)
    kept = [row["sample_id"] for row in rows if row["sample_id"] not in gone]
    texts = pool.rows(["messages"], kept)
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


def contaminated(read: Snapshot, dataset: str, targets: Iterable[str]) -> dict[str, dict[str, str]]:
    """{target: {sample id: what it shares with a test row}} from one pass over the pool."""
    found: dict[str, dict[str, str]] = {target: {} for target in sorted(targets)}
    indexes = {}
    for target in found:
        held = read.table(label(examples(target)), test_rows_table(target))
        rows = held.read(["sample_id", "subtask", "question"])
        if rows.num_rows:
            columns = (rows.column(i).to_pylist() for i in range(3))
            indexes[target] = HeldOutIndex.build(zip(*columns, strict=True))
    if not indexes:
        return found
    pool = read.table(label(RAW_POOL, dataset), pool_table(dataset))
    title = f"checking {dataset} against test rows"
    with progress_bar(title, pool.count(), "samples") as advance:
        for batch in pool.scan(["sample_id", "messages"]):
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
    read: Snapshot,
    key: dg.AssetKey,
    partition: str,
    recipe: RecipeSpec,
    made: Selection,
    excluded: Mapping[str, str],
    *,
    inputs: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult[Any]:
    """Writes the ranked rows of `key`, pins all they were chosen from, and describes them.

    inputs: the part of the snapshot they were chosen from; default: all of it. `about` goes into
    the record.
    """
    of = AssetPartition.of(key.path, partition)
    (owner, recipe_name), (dataset, model) = of.subset, of.pair
    pool = read.table(label(RAW_POOL, dataset), pool_table(dataset))
    chosen = pool.rows(["messages", "origins", "n_chars"], made.sample_ids)
    origins = chosen.column("origins").to_pylist()
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
    name = subset_table(owner, recipe_name, dataset, model)
    digest = rows_digest(made.sample_ids)
    with read.store.lock(name):
        version = read.store.replace(name, rows.to_batches(), SUBSET_SCHEMA)
        tag = f"chosen-{digest[:12]}"
        read.store.tag(name, tag, version)
        return finished(
            read,
            key,
            partition,
            digest,
            inputs=inputs,
            tables=[name],
            about={
                "recipe": recipe.model_dump(mode="json", exclude={"finetune"}),
                "tag": tag,
                TEST_ROWS: _test_rows(read, inputs or read.inputs),
                **(about or {}),
            },
            shown=_shown(made, excluded, chosen, pool),
            pinned=True,
        )


def _test_rows(read: Snapshot, inputs: Iterable[str]) -> int:
    """The held-out test rows of all targets whose examples are among the inputs."""
    found = (AssetPartition.parse(asset) for asset in inputs)
    targets = {str(of): of.owner for of in found if of.kind == "examples" and of.owner is not None}
    return sum(read.table(a, test_rows_table(t)).count() for a, t in targets.items())


def _shown(
    made: Selection, excluded: Mapping[str, str], chosen: pa.Table, pool: TableAt
) -> dict[str, Any]:
    """What Dagster's UI shows of a subset."""
    from mona.plots import bars, length_histogram, score_histogram

    report = made.report
    origins = chosen.column("origins").to_pylist()
    pool_mix, pool_chars = _pool_mix(pool)
    chosen_mix = Counter(row[0]["source"] for row in origins)
    largest = sorted(chosen_mix.items(), key=lambda x: (-x[1], x[0]))[:20]
    dropped = [{"sample_id": key, "why": why[:200]} for key, why in list(excluded.items())[:20]]
    return {
        "dagster/row_count": report.chosen,
        "eligible": report.eligible,
        "contaminated and dropped": len(excluded),
        "tokens": report.tokens or 0,
        "budget met": report.budget_met,
        "best score": float(made.scores[0]),
        "last score": float(made.scores[-1]),
        "dropped rows": table(dropped),
        "scores": picture(
            score_histogram(report.edges, report.pool_counts, report.chosen_counts),
            "scores of the pool and the chosen",
        ),
        "sources": picture(bars(pool_mix, dict(chosen_mix)), "source mix of pool and chosen"),
        "lengths": picture(
            length_histogram(pool_chars, chosen.column("n_chars").to_numpy(), "characters"),
            "lengths of pool and chosen",
        ),
        "largest sources": table(
            [{"source": s, "chosen": n, "in pool": pool_mix.get(s, 0)} for s, n in largest]
        ),
        "top 20": table(_top(made, origins, chosen.column("messages").to_pylist())),
    }


def _top(made: Selection, origins: Sequence[Any], texts: Sequence[Any]) -> list[dict[str, Any]]:
    """The best twenty rows."""
    return [
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


def _pool_mix(pool: TableAt) -> tuple[dict[str, int], np.ndarray]:
    """(samples by their first source, characters of each sample) of the whole pool."""
    mix: dict[str, int] = {}
    chars: list[np.ndarray] = []
    for batch in pool.scan(["origins", "n_chars"]):
        first = pc.list_element(batch.column("origins"), 0)
        for entry in pc.value_counts(pc.struct_field(first, "source")).to_pylist():
            mix[entry["values"]] = mix.get(entry["values"], 0) + entry["counts"]
        chars.append(batch.column("n_chars").to_numpy())
    return mix, np.concatenate(chars)
