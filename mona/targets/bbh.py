"""BIG-Bench Hard: reasoning with free-text answers."""

from __future__ import annotations

import re

from mona.errors import RequestError
from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
    Reader,
    answer_text,
    json_document,
    records,
    row_error,
    stem,
    target_row,
    text,
    whole_text,
)

_EXEMPLAR = re.compile(r"^Q:", re.MULTILINE)
_ANSWER = re.compile(r"^A:", re.MULTILINE)


def read_bbh(file: DataFile) -> list[TargetRow]:
    """BIG-Bench Hard: a task's JSON (`examples` of `input`, `target`) or the hub's rows, or its
    cot-prompts .txt, whose exemplars carry a rationale. The subtask is the file's name."""
    if file.filename.endswith(".txt"):
        return _bbh_exemplars(file)
    if file.filename.endswith(".jsonl"):
        examples: object = [raw.data for raw in records(file)]
    else:
        document = json_document(file)
        examples = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(examples, list):
        raise RequestError(f"{file.name}: no list 'examples'")
    rows = []
    for number, example in enumerate(examples, 1):
        if not isinstance(example, dict):
            raise row_error(file, number, "not an object")
        question = text(file, number, example, "input")
        target = answer_text(file, number, example, "target")
        rows.append(
            target_row(
                file,
                number,
                user=question,
                assistant=target,
                subtask=stem(file),
                question=question,
                references=() if target is None else [target],
            )
        )
    return rows


def _bbh_exemplars(file: DataFile) -> list[TargetRow]:
    """The `Q: ... A: ...` blocks behind the canary and the task's description, which belong
    to no exemplar. The rationale keeps its "Let's think step by step."."""
    _, *blocks = _EXEMPLAR.split(whole_text(file))
    rows = []
    for number, block in enumerate(blocks, 1):
        parts = [part.strip() for part in _ANSWER.split(block)]
        if len(parts) != 2 or not all(parts):
            raise row_error(file, number, "an exemplar is one 'Q:' followed by one 'A:'")
        question, answer = parts
        rows.append(
            target_row(
                file,
                number,
                user=question,
                assistant=answer,
                subtask=stem(file),
                question=question,
            )
        )
    return rows


KIND = Reader(read_bbh)
