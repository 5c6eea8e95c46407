"""Questions with lettered options: MMLU and GPQA.

The user turn is the question, one line an option ("A. ...") and "Answer:"; the assistant
turn is the right option's line, after the rationale where the file has one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mona.errors import RequestError
from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import csv_records, records, row_error, stem, target_row, text

LETTERS = "ABCD"
_SPLIT_SUFFIX = re.compile(r"_(dev|val|test)$")


def question_with_options(question: str, options: Sequence[str]) -> str:
    """The user turn of a multiple-choice row."""
    lines = [option_line(index, option) for index, option in enumerate(options)]
    return "\n".join([question.strip(), *lines, "Answer:"])


def option_line(index: int, option: str) -> str:
    """One lettered option."""
    return f"{LETTERS[index]}. {option.strip()}"


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


def read_gpqa(file: DataFile) -> list[TargetRow]:
    """GPQA (CSV with header, or the hub's rows): `Question`, `Correct Answer`, `Incorrect Answer
    1` to `3`.

    The file puts the right answer first, so the options are ordered by a hash of the question
    and each option: the same row gets the same order in every GPQA file. `Explanation` is the
    rationale. The subtask is `High-level domain`, else `Subdomain`, else the file's name.
    """
    rows = []
    for number, data in _gpqa_records(file):
        question = text(file, number, data, "Question").strip()
        correct = text(file, number, data, "Correct Answer")
        wrong = [text(file, number, data, f"Incorrect Answer {which}") for which in (1, 2, 3)]
        options = sorted([correct, *wrong], key=lambda option: _place(question, option))
        answer = option_line(options.index(correct), correct)
        rationale = (data.get("Explanation") or "").strip()
        domains = (
            (data.get(column) or "").strip() for column in ("High-level domain", "Subdomain")
        )
        rows.append(
            target_row(
                file,
                number,
                user=question_with_options(question, options),
                assistant=f"{rationale}\n{answer}" if rationale else answer,
                subtask=next((domain for domain in domains if domain), stem(file)),
                question=question,
                references=[answer[0]],
            )
        )
    return rows


def _gpqa_records(file: DataFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if file.filename.endswith(".jsonl"):
        for raw in records(file):
            yield raw.line, raw.data
        return
    header, *body = csv_records(file) or [[]]
    if missing := {"Question", "Correct Answer"} - set(header):
        raise RequestError(f"{file.name}: no column '{min(missing)}'")
    for number, record in enumerate(body, 1):
        if len(record) != len(header):
            raise row_error(file, number, f"{len(record)} columns where {len(header)} are expected")
        yield number, dict(zip(header, record, strict=True))


def _place(question: str, option: str) -> bytes:
    return hashlib.sha256(f"{question}\0{option.strip()}".encode()).digest()
