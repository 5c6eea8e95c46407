"""Materialisation metadata that several assets show in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from mona.printable import escaped
from resources.records import Record

RECORD = "record"
# Columns of metadata tables that hold pieces of samples. Each such table has their ids in
# `sample_id`, so that a withdrawal finds them.
TEXT_COLUMNS = ("prompt", "answer", "why")


def picture(png: bytes, alt: str) -> dg.MetadataValue:
    """A plot, inline."""
    from mona.plots import as_markdown

    return dg.MetadataValue.md(as_markdown(png, alt))


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """Rows of plain values; the columns are those of the first row. The UI shows cells as text:
    what is left to take out of them are characters that reorder or hide it."""
    return (
        dg.MetadataValue.table([dg.TableRecord(_shown(row)) for row in rows])
        if rows
        else (dg.MetadataValue.text("none"))
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: escaped(v, "\n\t") if isinstance(v, str) else v for k, v in row.items()}


def provenance(digest: str, record: Record) -> dict[str, dg.MetadataValue]:
    """The explicit record each materialisation carries: what it read, by record, and what it
    was made with. Dagster's own provenance degrades past 99 upstream partitions."""
    shown = {"inputs": record.inputs, "entries": record.entries, **record.about}
    return {
        RECORD: dg.MetadataValue.text(digest),
        "provenance": dg.MetadataValue.json(shown),
    }
