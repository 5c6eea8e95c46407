"""A target row, the seeded draw of examples, the test rows that remain, and their Arrow form.

Nothing here knows a benchmark's file format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mona.draw import lot
from mona.errors import RequestError
from mona.sample import Message, from_records, sample_id, to_records


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One row of a target task.

    messages: the user turn and, where the file has a gold answer, the assistant turn.
    subtask: subject, language or domain; the unit of balanced prototypes.
    file, row: where it was read. `row` counts from 1: the line where a row of JSON or JSON Lines
        starts, the number of the entry in other files.
    question: what is compared with the pool: the question without answer options, added
        instructions, passages or tests, so that a copy in another layout is still found.
    references: what an evaluation compares an answer with: every gold answer; for a program the
        tests it must pass. None where the row has no gold answer or no metric is known for it.

    `sample_id(messages)` is the row's id. Benchmarks repeat rows, so ids can too.
    """

    messages: tuple[Message, ...]
    subtask: str
    file: str
    row: int
    question: str
    references: tuple[str, ...] = ()


EXAMPLES_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field(
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            nullable=False,
        ),
        pa.field("subtask", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("references", pa.list_(pa.string()), nullable=False),
    ]
)


def to_table(rows: Sequence[TargetRow]) -> pa.Table:
    """Rows in order, as a table of EXAMPLES_SCHEMA."""
    return pa.Table.from_pylist(
        [
            {
                "sample_id": sample_id(row.messages),
                "messages": to_records(row.messages),
                "subtask": row.subtask,
                "question": row.question,
                "file": row.file,
                "row": row.row,
                "references": list(row.references),
            }
            for row in rows
        ],
        schema=EXAMPLES_SCHEMA,
    )


def from_table(table: pa.Table) -> list[TargetRow]:
    """The inverse of `to_table`; ids are recomputed from the messages when they are needed."""
    return [
        TargetRow(
            messages=from_records(record["messages"]),
            subtask=record["subtask"],
            file=record["file"],
            row=record["row"],
            question=record["question"],
            references=tuple(record["references"]),
        )
        for record in table.to_pylist()
    ]


def choose_examples(
    rows: Sequence[TargetRow], *, count: int | None, per_subtask: int | None, seed: int
) -> list[TargetRow]:
    """The representative examples: a seeded draw, returned in the order of `rows`.

    With `per_subtask`, that many rows of every subtask; with `count`, that many rows of what
    is left; with neither, all rows. A row's place in the draw is SHA-256 of the seed and its
    id: it depends neither on the order of the files nor on the other rows.
    Raises RequestError where fewer rows exist than are asked for.
    """
    lots = [lot(seed, sample_id(row.messages)) for row in rows]
    drawn = sorted(range(len(rows)), key=lambda index: (lots[index], index))
    if per_subtask is not None:
        by_subtask: dict[str, list[int]] = defaultdict(list)
        for index in drawn:
            by_subtask[rows[index].subtask].append(index)
        for subtask, indices in sorted(by_subtask.items()):
            if len(indices) < per_subtask:
                raise RequestError(
                    f"{per_subtask} examples per subtask were asked for, "
                    f"'{subtask}' has {len(indices)}"
                )
        chosen = {index for indices in by_subtask.values() for index in indices[:per_subtask]}
        drawn = [index for index in drawn if index in chosen]
    if count is not None:
        if len(drawn) < count:
            raise RequestError(f"{count} examples were asked for, there are {len(drawn)}")
        drawn = drawn[:count]
    return [rows[index] for index in sorted(drawn)]


def held_out(rows: Iterable[TargetRow], examples: Iterable[TargetRow]) -> list[TargetRow]:
    """The rows that are none of the examples: neither the same conversation nor the same
    question (up to surrounding white space)."""
    examples = list(examples)
    ids = {sample_id(row.messages) for row in examples}
    questions = {row.question.strip() for row in examples}
    return [
        row
        for row in rows
        if row.question.strip() not in questions and sample_id(row.messages) not in ids
    ]
