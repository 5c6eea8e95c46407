"""A chosen subset written in the forms other trainers read.

Belongs here: the formats and how files are put in place. Which rows to write, and in which
order, is the caller's. Each format is a file here, called as it is; what such a file says is
`base.ExportFormat`, and `mona.registry.EXPORTS` finds them.

A row is a dict with `sample_id`, `messages` (a list of role/content dicts), `score`, `rank`,
`source` and `licence`. Every format keeps the last four and the id beside the conversation,
so that a file can be traced back. Files are written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

from mona.errors import RequestError, WorkError
from mona.exports._files import read_back, replacing, write_rows
from mona.exports.base import FileKind, Row, UnfitSampleError
from mona.publishing import refuse_existing
from mona.registry import EXPORTS
from mona.sample import fold_system, from_records, to_records
from mona.spec import FinetuneSpec, SystemTurns

__all__ = [
    "FileKind",
    "UnfitSampleError",
    "export",
    "files_of",
    "held",
    "kind_by_content",
    "without",
]


def export(
    rows: Iterable[Row],
    fmt: str,
    out: Path,
    *,
    force: bool = False,
    left_out: Callable[[str], None] | None = None,
    training: FinetuneSpec | None = None,
    system: SystemTurns = "keep",
) -> list[Path]:
    """Writes rows, streamed and in order, and returns the files written.

    fmt: a name of `mona.registry.EXPORTS`. training: what a format that writes training settings
    takes them from. system: "fold" puts system turns into the user turn that follows, as the
    model that chose read them.

    Raises RequestError when there is no such format, when `out` exists and `force` is not given,
    when it cannot be written, when there are no rows, and UnfitSampleError when a conversation has
    a shape the format cannot hold (naming the sample); with `left_out`, such samples are left out
    and their reasons go there. After an error what was there before is there still.
    """
    kind = EXPORTS.get(fmt)
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise RequestError(f"{out}: there are no rows to export")
    rows = chain([first], iterator)
    if system == "fold":
        rows = map(_folded, rows)
    converted = _converted(rows, kind.convert, left_out)
    written = list(files_of(fmt, out, training))
    if kind.folder is None:
        if out.is_dir():
            raise RequestError(f"{out}: is a folder; {fmt} is written to a file")
        refuse_existing(out, force)
        write_rows(converted, out, kind.form)
        return written
    settings = kind.folder.settings(out, training, force)
    write_rows(converted, written[0], kind.form)
    for path in written[1:]:
        with replacing(path) as temporary:
            temporary.write_text(settings[path], encoding="utf-8")
    return written


def files_of(fmt: str, out: Path, training: FinetuneSpec | None = None) -> dict[Path, FileKind]:
    """The files that an export to `out` writes, in their order, and what each is."""
    kind = EXPORTS.get(fmt)
    return {out: kind.form} if kind.folder is None else kind.folder.files(out, training)


def held(file: Path, kind: FileKind, sample_ids: Collection[str]) -> int:
    """How many rows of a written export are of these samples. WorkError for a file that can't be
    read as what it was written as."""
    return sum(row["sample_id"] in sample_ids for row in read_back(file, kind))


def without(file: Path, kind: FileKind, sample_ids: Collection[str]) -> int:
    """Takes the rows of these samples out of a written export, in place; returns how many.
    WorkError as `held`, or where it can't be written; the file is as it was then."""
    rows = read_back(file, kind)
    left = [row for row in rows if row["sample_id"] not in sample_ids]
    if len(left) < len(rows):
        try:
            write_rows(left, file, kind)
        except RequestError as error:
            raise WorkError(str(error)) from error
    return len(rows) - len(left)


def kind_by_content(file: Path) -> FileKind:
    """What an export's file is, from how it begins: for those written before the ledger of
    exports said it."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if start == b"PAR1":
        return "parquet"
    if start.startswith(b"["):
        return "array"
    # Settings are JSON over several lines or YAML; a row is an object on one.
    return "jsonl" if start.startswith(b'{"') else "settings"


def _converted(
    rows: Iterable[Row], convert: Callable[[Row], Row], left_out: Callable[[str], None] | None
) -> Iterator[Row]:
    fitting = 0
    for row in rows:
        try:
            yield convert(row)
            fitting += 1
        except UnfitSampleError as error:
            if left_out is None:
                raise
            left_out(str(error))
    if not fitting:
        raise UnfitSampleError("the format can hold none of the samples")


def _folded(row: Row) -> Row:
    return {**row, "messages": to_records(fold_system(from_records(row["messages"])))}
