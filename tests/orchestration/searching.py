"""The search that decides whether a withdrawn sample is gone: everything decoded, every file."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from lance.file import LanceFileReader


def search(root: Path, sample: str, texts: list[str]) -> dict[str, int]:
    """Where a sample is found, decoded, in all files under `root` but the source files: kind
    of place -> how many files. Of tables every data file on disk is read, referred to by a
    version or not; only selections and evaluations may name the id."""
    found: dict[str, int] = {}
    store = root / "store"
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.parent == root and path.suffix in (".jsonl", ".yaml"):
            continue
        if path.suffix == ".lance" and path.parent.name == "data":
            name = path.parent.parent.name.removesuffix(".lance")
            rows = LanceFileReader(str(path)).read_all().to_table()
            audited = name.startswith(("selection.", "evaluation."))
            named = not audited and sample in column(rows, "sample_id")
            hit = named or shown(texts, rows.to_pylist())
            kind = name.split(".")[0]
        else:
            kind = "out" if store not in path.parents else path.relative_to(store).parts[0]
            hit = any(shown(texts, part) for part in decoded(path))
        if hit:
            found[kind] = found.get(kind, 0) + 1
    return found


def column(rows: pa.Table, name: str) -> list[Any]:
    return rows.column(name).to_pylist() if name in rows.column_names else []


def decoded(path: Path) -> Iterator[Any]:
    """What a file says, as it is and unpacked; a safetensors header is plain JSON in the first."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:  # a database's journal, beside a running UI
        return
    yield raw.decode("utf-8", "replace")
    if raw[:4] == b"PAR1":
        yield pq.read_table(io.BytesIO(raw)).to_pylist()
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw).decode("utf-8", "replace")
    if raw[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name in archive.namelist():
                yield archive.read(name).decode("utf-8", "replace")
    if raw[:4] == b"\x28\xb5\x2f\xfd":
        yield zstandard.ZstdDecompressor().stream_reader(raw).read().decode()
    if raw.startswith(b"SQLite format 3\x00"):
        with sqlite3.connect(path) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'"):
                for row in connection.execute(f'SELECT * FROM "{name}"'):
                    for value in row:
                        yield value
                        if isinstance(value, str) and value[:1] in ("{", "["):
                            yield json.loads(value)


def shown(texts: list[str], value: Any) -> bool:
    if isinstance(value, str):
        return any(text in value for text in texts)
    if isinstance(value, dict):
        return any(shown(texts, item) for item in value.values())
    return isinstance(value, list) and any(shown(texts, item) for item in value)
