"""parquet: the columns of jsonl."""

from __future__ import annotations

from mona.exports.base import (
    ExportFormat,
    Row,
    as_messages,
    refuse_marks,
)


def _convert(row: Row) -> Row:
    # A column for the mark would be null in the turns of all other rows.
    refuse_marks(row, "parquet")
    return as_messages(row)


KIND = ExportFormat(_convert, "parquet")
