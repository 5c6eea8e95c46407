"""HumanEval: the rest of a function, from its signature and docstring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
    Reader,
    answer_text,
    records,
    target_row,
    text,
)


def read_humaneval(file: DataFile) -> list[TargetRow]:
    """HumanEval (JSONL of `prompt`, `canonical_solution`): the signature with its docstring,
    and the function's body."""
    rows = []
    for raw in records(file):
        prompt = text(file, raw.line, raw.data, "prompt")
        solution = answer_text(file, raw.line, raw.data, "canonical_solution")
        rows.append(
            target_row(
                file,
                raw.line,
                user=prompt,
                assistant=solution,
                subtask="humaneval",
                question=prompt,
                references=_humaneval_tests(raw.data),
            )
        )
    return rows


def _humaneval_tests(data: Mapping[str, Any]) -> list[str]:
    """The test code with the call that runs it, as one text; none where the row has no tests."""
    tests, name = data.get("test"), data.get("entry_point")
    if not isinstance(tests, str) or not isinstance(name, str):
        return []
    return [f"{tests}\ncheck({name})\n"]


KIND = Reader(read_humaneval)
