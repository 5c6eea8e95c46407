"""A model's answers to test rows, scored: lm-evaluation-harness run chunk by chunk.

Each finished chunk is a file in a scratch folder, so an evaluation that was ended, however,
goes on where it stood and ends the same. What is asked and how it is scored is
`mona.evaluation.tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mona.draw import by_turns
from mona.errors import RequestError
from mona.evaluation.draw import draw_rows
from mona.evaluation.harness import (
    Place,
    answer,
    data_commits,
    named_tasks,
    quiet,
    require_harness,
    wrapped,
)
from mona.evaluation.results import Evaluation, RowResult, summarise
from mona.evaluation.sandbox import require_permission
from mona.evaluation.tasks import make_tasks, runs_programs
from mona.fingerprint import fingerprint
from mona.publishing import write_whole
from mona.sample import sample_id
from mona.spec import EvaluationSpec, TargetReader
from mona.targets import TargetRow

CHUNK_ROWS = 64
# Targets whose figure is the mean of their subtasks' figures (TyDiQA: of the languages').
_MACRO = ("tydiqa",)


def evaluate(
    model: Any,
    tokenizer: Any,
    reader: TargetReader,
    test: Sequence[TargetRow],
    examples: Sequence[TargetRow],
    spec: EvaluationSpec,
    *,
    scratch: Path,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """The task metrics of `model` on a seeded draw of `test`; where `spec.task` is set, on that
    task of the harness, and then the rows are not read.

    model: a causal language model of transformers, on its device; tokenizer: its own.
    scratch: a folder for the finished chunks of this model's evaluations and of no other's.
    batch_tokens: prompt and answer tokens a forward pass. progress: called with the number of
    rows each time some are done.
    Raises RequestError for what the specification can't have, before any work.
    """
    if spec.task is None and runs_programs(reader):
        require_permission(spec.allow_code_execution)
    if spec.chat and not tokenizer.chat_template:
        raise RequestError("the model has no chat template: set evaluation.chat to false")
    require_harness()
    with quiet():
        if spec.task is None:
            drawn = draw_rows([row for row in test if row.references], spec.rows, spec.seed)
            if not drawn:
                raise RequestError("no test row has anything to compare an answer with")
            tasks = make_tasks(reader, drawn, examples, spec)
            places = [(name, i) for name, task in tasks.items() for i in range(len(task.eval_docs))]
            ids = {place: tasks[place[0]].eval_docs[place[1]]["sample_id"] for place in places}
            order = {sample_id(row.messages): place for place, row in enumerate(drawn)}
        else:
            tasks = named_tasks(spec.task, spec)
            every = (
                (name, f"{name}:{number}", (name, number))
                for name, task in tasks.items()
                for number in range(len(task.eval_docs))
            )
            places = by_turns(every, spec.seed)[: spec.rows]
            ids = {(name, number): f"{name}:{number}" for name, number in places}
            order = {ids[place]: i for i, place in enumerate(places)}
        rows = _rows(model, tokenizer, tasks, ids, spec, scratch, batch_tokens, progress)
    rows.sort(key=lambda row: order[row.sample_id])
    found = summarise(rows, macro=is_macro(reader, spec), seed=spec.seed)
    return found if spec.task is None else replace(found, data=data_commits(tasks))


def is_macro(reader: TargetReader, spec: EvaluationSpec) -> bool:
    """Whether the target's figure is the mean of its subtasks' figures."""
    return spec.task is None and reader in _MACRO


def _rows(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    ids: Mapping[Place, str],
    spec: EvaluationSpec,
    scratch: Path,
    batch_tokens: int,
    progress: Callable[[int], None] | None,
) -> list[RowResult]:
    # Of similar length, so that little of a batch is padding; the longest first, so that one
    # that does not fit is met at once.
    lengths = {place: len(str(_prompt_of(tasks, place))) for place in ids}
    ordered = sorted(ids, key=lambda place: (-lengths[place], place))
    chunks = [ordered[i : i + CHUNK_ROWS] for i in range(0, len(ordered), CHUNK_ROWS)]
    identity = _identity(tasks, chunks, spec, batch_tokens)
    scratch.mkdir(parents=True, exist_ok=True)
    rows: list[RowResult] = []
    harness_model: Any = None
    for number, chunk in enumerate(chunks):
        file = scratch / f"{identity}-{number:05d}.jsonl"
        if file.exists():
            lines = file.read_text(encoding="utf-8").splitlines()
            made = [RowResult(**json.loads(line)) for line in lines]
        else:
            harness_model = harness_model or wrapped(model, tokenizer, batch_tokens)
            asked = {place: ids[place] for place in chunk}
            made = answer(harness_model, tasks, asked, chat=spec.chat)
            write_whole(file, "".join(f"{json.dumps(asdict(row))}\n" for row in made))
        rows += made
        if progress is not None:
            progress(len(made))
    return rows


def _prompt_of(tasks: Mapping[str, Any], place: Place) -> Any:
    name, number = place
    return tasks[name].doc_to_text(tasks[name].eval_docs[number])


def _identity(
    tasks: Mapping[str, Any],
    chunks: Sequence[Sequence[Place]],
    spec: EvaluationSpec,
    batch_tokens: int,
) -> str:
    """What the chunks' answers depend on, beside the model."""
    from importlib.metadata import version

    documents = [tasks[name].eval_docs[number] for chunk in chunks for name, number in chunk]
    shots = {name: task.fewshot_cfg.samples for name, task in tasks.items()}
    return fingerprint(
        documents=json.dumps(documents, sort_keys=True, default=str),
        shots=json.dumps(shots, sort_keys=True, default=str),
        spec=spec.model_dump(mode="json"),
        batch_tokens=batch_tokens,
        chunk_rows=CHUNK_ROWS,
        harness=version("lm_eval"),
    )
