"""GSM8K: word problems with a rationale and a number."""

from __future__ import annotations

from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
    Reader,
    answer_text,
    records,
    target_row,
    text,
)


def read_gsm8k(file: DataFile) -> list[TargetRow]:
    """GSM8K (JSONL of `question`, `answer`).

    The answer is the rationale as the file has it, `<<48/2=24>>` annotations and the final
    `#### 72` included: MONA's examples are raw training rows.
    """
    rows = []
    for raw in records(file):
        question = text(file, raw.line, raw.data, "question")
        answer = answer_text(file, raw.line, raw.data, "answer")
        rows.append(
            target_row(
                file,
                raw.line,
                user=question,
                assistant=answer,
                subtask="gsm8k",
                question=question,
                references=_final_number(answer),
            )
        )
    return rows


def _final_number(answer: str | None) -> list[str]:
    """What follows the last `####`, without its thousands' commas."""
    _, mark, number = (answer or "").rpartition("####")
    return [number.strip().replace(",", "")] if mark and number.strip() else []


KIND = Reader(read_gsm8k)
