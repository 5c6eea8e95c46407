"""Materialisation metadata that several assets show in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg


def picture(png: bytes, alt: str) -> dg.MetadataValue:
    """A plot, inline."""
    from mona.plots import as_markdown

    return dg.MetadataValue.md(as_markdown(png, alt))


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """Rows of plain values; the columns are those of the first row."""
    return (
        dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])
        if rows
        else (dg.MetadataValue.text("none"))
    )


def provenance(inputs: Mapping[str, str], **about: Any) -> dg.MetadataValue:
    """The explicit record each materialisation carries: what it read, by version, and what
    it was made with. Dagster's own provenance degrades past 99 upstream partitions."""
    return dg.MetadataValue.json({"inputs": dict(inputs), **about})
