"""Questions about a passage: TyDi QA, gold passage task, in SQuAD's JSON or as a hub's rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mona.errors import RequestError
from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import Reader, json_document, records, row_error, stem, target_row, text

LANGUAGES = frozenset(
    (
        "arabic",
        "bengali",
        "english",
        "finnish",
        "indonesian",
        "japanese",
        "korean",
        "russian",
        "swahili",
        "telugu",
        "thai",
    )
)


def read_tydiqa(file: DataFile) -> list[TargetRow]:
    """The user turn is the passage, a blank line and the question; the assistant turn the
    first answer. `question` is without the passage: passages are public text.

    The subtask is the language, from the question's id (swahili-42-0), else from the name of
    the file or its folder, else the file's name. Rows count questions through the file.
    """
    rows = []
    for number, (paragraph, entry) in enumerate(_questions(file), 1):
        question = text(file, number, entry, "question")
        context = text(file, number, paragraph, "context")
        answers = _answers(file, number, entry)
        rows.append(
            target_row(
                file,
                number,
                user=f"{context}\n\n{question}",
                assistant=answers[0] if answers else None,
                subtask=_language(file, entry),
                question=question,
                references=answers,
            )
        )
    return rows


def _questions(file: DataFile) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(paragraph, question) pairs in order. A hub's row is both, its answers a list a field."""
    if file.filename.endswith(".jsonl"):
        for raw in records(file):
            answers = raw.data.get("answers")
            texts = answers.get("text") if isinstance(answers, dict) else None
            if not isinstance(texts, list):
                raise row_error(file, raw.line, "field 'answers' has no list 'text'")
            yield raw.data, {**raw.data, "answers": [{"text": text} for text in texts]}
        return
    document = json_document(file)
    try:
        pairs = [
            (paragraph, entry)
            for article in document["data"]
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except (KeyError, TypeError):
        raise RequestError(f"{file.name}: not SQuAD's data[].paragraphs[].qas[]") from None
    for number, (paragraph, entry) in enumerate(pairs, 1):
        if not isinstance(entry, dict):
            raise row_error(file, number, "a question is not an object")
        yield paragraph, entry


def _answers(file: DataFile, row: int, entry: Mapping[str, Any]) -> list[str]:
    """The distinct gold answers, in the file's order."""
    answers = entry.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise row_error(file, row, "field 'answers' is not a list of objects")
    return list(dict.fromkeys(text(file, row, answer, "text") for answer in answers))


def _language(file: DataFile, entry: Mapping[str, Any]) -> str:
    places = (str(entry.get("id", "")), stem(file), file.folder)
    words = (word for place in places for word in re.split(r"[^a-z]+", place.lower()))
    return next((word for word in words if word in LANGUAGES), stem(file))


KIND = Reader(read_tydiqa)
