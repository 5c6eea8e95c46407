"""GPQA: questions with lettered options.

The user turn is the question, one line an option ("A. ...") and "Answer:"; the assistant
turn is the right option's line, after the rationale where the file has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from mona.errors import RequestError
from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
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


KIND = Reader(read_gpqa)
