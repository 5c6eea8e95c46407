"""Small pools for tests: numbered rows, their ids, sources of rows and of files, and the pool that
is built of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mona.files import DataFile
from mona.pool import NamedRows, PoolResult, PoolSource, build_pool
from mona.sample import Message, sample_id
from mona.spec import Source


def row(number: int) -> dict[str, Any]:
    return {"instruction": f"Count to {number}.", "output": " ".join(map(str, range(number)))}


def identity(number: int) -> str:
    given_row = row(number)
    return sample_id(
        [Message("user", given_row["instruction"]), Message("assistant", given_row["output"])]
    )


def source(name: str, *inputs: NamedRows | DataFile, **fields: Any) -> PoolSource:
    return PoolSource(Source(name=name, path="unused", **fields), inputs)


def hub(name: str, numbers: Sequence[int]) -> NamedRows:
    return NamedRows(name, [row(number) for number in numbers])


def build(*sources: PoolSource, **options: Any) -> tuple[PoolResult, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as staging:
        result = build_pool(sources, Path(staging), **{"max_bad_rows": 0.0, **options})
        return result, pq.read_table(result.parquet).to_pylist()


def data_files(folder: Path, **contents: str) -> list[DataFile]:
    paths = [folder / f"{name}.jsonl" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_text(content, "utf-8")
    return [DataFile(path) for path in paths]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
