"""`<target>/examples`: what a target task looks like, and the test rows it is measured on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.describe import table
from assets.keys import examples, label, target_entry
from assets.pools import CPU_POOL
from assets.retries import retried
from assets.step import finished
from mona.errors import RequestError
from mona.fingerprint import fingerprint
from mona.sample import sample_id
from mona.spec import Hub, TargetFiles, TargetSpec
from mona.targets import (
    EXAMPLES_SCHEMA,
    TargetRow,
    choose_examples,
    held_out,
    read_target,
    to_table,
)
from resources.encoding_tables import KEY
from resources.records import Records
from resources.snapshot import Snapshot
from resources.sources import Sources
from resources.store import Store

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


def examples_table(target: str) -> str:
    """The Lance table of a target's representative examples."""
    return f"examples.{target}"


def build_examples(target: str, spec: TargetSpec) -> dg.AssetsDefinition:
    """The asset of one target."""

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
        withdrawn = sources.ledger.forbidden().ids
        entry = sources.target_version(target, spec)
        chosen = choose_examples(
            read(spec.examples, "examples"),
            count=spec.examples_count,
            per_subtask=spec.examples_per_subtask,
            seed=spec.seed,
        )
        test = held_out(read(spec.test, "test"), chosen) if spec.test else []
        with store.lock(examples_table(target)):
            for name, rows in ((examples_table(target), chosen), (test_rows_table(target), test)):
                made = _distinct(rows)
                store.replace(name, made.cast(_KEYED_EXAMPLES).to_batches(), _KEYED_EXAMPLES)
            return finished(
                Snapshot(store, records, {}),
                examples(target),
                None,
                fingerprint(
                    examples=[[row_id, row.subtask] for row_id, row in _by_id(chosen)],
                    test=[[row_id, row.question, *row.references] for row_id, row in _by_id(test)],
                ),
                entries={label(target_entry(target)): entry},
                tables=[examples_table(target), test_rows_table(target)],
                about={"revisions": revisions},
                shown=_shown(chosen, test, revisions),
            )

    return target_examples


def _shown(
    chosen: list[TargetRow], test: list[TargetRow], revisions: Mapping[str, str]
) -> dict[str, Any]:
    """What Dagster's UI shows of a target."""
    first = [
        {
            "sample_id": sample_id(row.messages),
            "subtask": row.subtask,
            "prompt": row.messages[0].content[:300],
            "answer": row.messages[-1].content[:300],
        }
        for row in chosen[:10]
    ]
    return {
        "dagster/row_count": len(chosen),
        "held-out test rows": len(test),
        "subtasks": len({row.subtask for row in chosen}),
        **{f"commit of {part}": commit for part, commit in revisions.items()},
        "first examples": table(first),
    }


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
