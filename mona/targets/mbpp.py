"""MBPP: programming problems with the tests that a program must pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
    Reader,
    answer_text,
    records,
    row_error,
    target_row,
    text,
)


def read_mbpp(file: DataFile, task_ids: tuple[int, int] | None = None) -> list[TargetRow]:
    """MBPP (JSONL of `text`, `code`, `test_list`) and its sanitized JSON (`prompt` for `text`).

    task_ids: the first and last id of a split; the splits of Austin et al. 2021 are 1-10
    (few-shot), 11-510 (test), 511-600 (validation) and 601-974 (train).
    """
    rows = []
    for raw in records(file):
        if task_ids is not None:
            task_id = raw.data.get("task_id")
            if not isinstance(task_id, int):
                raise row_error(file, raw.line, "no number in field 'task_id'")
            if not task_ids[0] <= task_id <= task_ids[1]:
                continue
        rows.append(mbpp_row(file, raw.line, raw.data, "mbpp"))
    return rows


def mbpp_row(file: DataFile, row: int, data: Mapping[str, Any], subtask: str) -> TargetRow:
    """One problem: the tests are part of the user turn, as in the prompt of Austin et al.
    2021 (they fix the function's name and signature), but not of the question."""
    question = text(file, row, data, "text" if "text" in data else "prompt")
    tests = data.get("test_list")
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise row_error(file, row, "field 'test_list' is not a list of texts")
    return target_row(
        file,
        row,
        user="\n".join([f"{question} Your code should pass these tests:", "", *tests]),
        assistant=answer_text(file, row, data, "code"),
        subtask=subtask,
        question=question,
        references=[*_setup(data), *tests],
    )


def _setup(data: Mapping[str, Any]) -> list[str]:
    """The code that MBPP's full file and its sanitized one want before the tests."""
    setup, imports = data.get("test_setup_code"), data.get("test_imports")
    lines = [setup] if isinstance(setup, str) and setup.strip() else []
    return lines + [line for line in imports or [] if isinstance(line, str)]


KIND = Reader(read_mbpp, read_between=read_mbpp)
