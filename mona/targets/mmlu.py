"""MMLU: questions with lettered options.

The user turn is the question, one line an option ("A. ...") and "Answer:"; the assistant
turn is the right option's line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
    LETTERS,
    Reader,
    csv_records,
    option_line,
    question_with_options,
    records,
    row_error,
    stem,
    target_row,
    text,
)

_SPLIT_SUFFIX = re.compile(r"_(dev|val|test)$")


def read_mmlu(file: DataFile) -> list[TargetRow]:
    """MMLU: CSV without header (question, four options, the answer's letter), or the hub's rows
    (`question`, `choices`, `answer` from 0 to 3, `subject`).

    The subtask is the subject, else the file's name without `_dev`, `_val` or `_test`.
    """
    rows = []
    for number, record, subject in _mmlu_records(file):
        if len(record) != 6:
            raise row_error(file, number, f"{len(record)} columns where 6 are expected")
        question, *options, answer = record
        if not question.strip():
            raise row_error(file, number, "the question is empty")
        if len(answer) != 1 or answer not in LETTERS:
            raise row_error(file, number, f"the answer is {answer!r}, not one of A, B, C, D")
        index = LETTERS.index(answer)
        rows.append(
            target_row(
                file,
                number,
                user=question_with_options(question, options),
                assistant=option_line(index, options[index]),
                subtask=subject,
                question=question,
                references=[answer],
            )
        )
    return rows


def _mmlu_records(file: DataFile) -> Iterator[tuple[int, list[str], str]]:
    """(row, its six columns, subject)."""
    if not file.filename.endswith(".jsonl"):
        subject = _SPLIT_SUFFIX.sub("", stem(file))
        for number, record in enumerate(csv_records(file), 1):
            yield number, record, subject
        return
    for raw in records(file):
        options, answer = raw.data.get("choices"), raw.data.get("answer")
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            raise row_error(file, raw.line, "field 'choices' is not a list of texts")
        if not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
            raise row_error(file, raw.line, f"field 'answer' is {answer!r}, not 0 to 3")
        question = text(file, raw.line, raw.data, "question")
        subject = text(file, raw.line, raw.data, "subject")
        yield raw.line, [question, *options, LETTERS[answer]], subject


KIND = Reader(read_mmlu)
