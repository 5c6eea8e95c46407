"""What a file of this folder says of its format, and what formats share of a row's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mona.errors import RequestError
from mona.spec import FinetuneSpec

# What a written file is: rows in one of three forms, or settings, which hold no row.
FileKind = Literal["jsonl", "array", "parquet", "settings"]
Row = dict[str, Any]

_LINEAGE_COLUMNS = ("sample_id", "rank", "score", "source", "licence")


class UnfitSampleError(RequestError):
    """A conversation has a shape that the format cannot hold."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What a format of several files does beside converting rows.

    files: the files that an export to a folder writes, in their order, and what each is; the
        first holds the rows.
    settings: the text of each of the others, as they will be once the rows are written.
        RequestError where something stands in the way and `force` is not given; asked before
        anything is written.
    """

    files: Callable[[Path, FinetuneSpec | None], dict[Path, FileKind]]
    settings: Callable[[Path, FinetuneSpec | None, bool], dict[Path, str]]


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format, the `KIND` of its file.

    convert: a row (see `mona.exports`) as the format has it, with its `sample_id`;
        UnfitSampleError where it can't hold the conversation.
    form: what the file of the rows is; a parquet file has the columns of `as_messages`.
    folder: for a format that is written to a folder.
    """

    convert: Callable[[Row], Row]
    form: FileKind
    folder: Folder | None = None


def lineage(row: Row) -> Row:
    """What traces a row back to its sample: for every format to keep."""
    return {key: row[key] for key in _LINEAGE_COLUMNS}


def mark(turn: Row) -> Row:
    """What says of a turn that it carries no loss, as OpenAI's and ShareGPT's files do."""
    return {"weight": 0} if turn.get("learn") is False else {}


def refuse_marks(row: Row, fmt: str) -> None:
    """UnfitSampleError where a turn is not to be learned, for formats that can't say so."""
    if any(map(mark, row["messages"])):
        raise UnfitSampleError(
            f"sample {row['sample_id']}: {fmt} cannot say that a turn is not to be learned"
        )


def as_messages(row: Row) -> Row:
    """The row with its turns as role and content."""
    messages = [
        {"role": turn["role"], "content": turn["content"], **mark(turn)} for turn in row["messages"]
    ]
    return {"messages": messages, **lineage(row)}


def joined(messages: Iterable[Row]) -> list[dict[str, str]]:
    """The turns, neighbours of one role joined; a tool's answers stay apart."""
    turns: list[dict[str, str]] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"] != "tool":
            turns[-1]["content"] += "\n\n" + message["content"]
        else:
            turns.append({"role": message["role"], "content": message["content"]})
    return turns


def split_system(row: Row) -> tuple[str, list[dict[str, str]]]:
    """The leading system prompt, or "", and the turns after it."""
    messages = joined(row["messages"])
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def check_pairs(row: Row, turns: list[dict[str, str]], asking: tuple[str, ...], fmt: str) -> None:
    """UnfitSampleError unless `turns` are pairs of an asking role and the assistant."""
    for position, turn in enumerate(turns):
        expected = ("assistant",) if position % 2 else asking
        if turn["role"] not in expected:
            raise UnfitSampleError(
                f"sample {row['sample_id']}: {fmt} cannot hold its {turn['role']} turn where "
                f"{' or '.join(expected)} is due"
            )
    if not turns or len(turns) % 2:
        raise UnfitSampleError(
            f"sample {row['sample_id']}: {fmt} cannot hold a conversation that does not end "
            "with an assistant turn"
        )
