"""Scores a synthetic pool on disk against several targets in one scan.

    python -m bench.scoring [--rows 200000] [--targets 6]

Prints rows a second, scans made, the scanning process's peak memory, and how many times
slower the dense formula is for a row: sum of minima over sum of maxima, all latents of each
decoded row, on some rows of every batch, whose scores must agree. The two run in turn, so
that a busy machine slows both. Latents are drawn uniformly, the worst case for the cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mona.codes import Codes, from_arrow, from_rows, to_arrow
from mona.prototype import mean_prototype
from mona.similarity import scan
from resources.store import Store

LATENTS = 131_072
NONZEROS = 600
DENSE_ROWS_A_BATCH = 12
EXAMPLES = 100
TABLE = "codes.bench"
BATCH = 8_192
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32()),
        pa.field("l1", pa.float32()),
        pa.field("indices", pa.list_(pa.uint32())),
        pa.field("values", pa.list_(pa.float16())),
    ]
)


class Clock:
    """Sums the wall and CPU seconds, all threads together, of its `with` blocks."""

    wall = cpu = 0.0

    def __enter__(self) -> None:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


@dataclass(frozen=True, slots=True)
class Scan:
    """What the scanning process measured."""

    rows: int
    passes: float
    fast: Clock
    reading: Clock
    dense_rows: int
    slow: Clock
    difference: float
    peak_bytes: int


def synthetic_codes(rng: np.random.Generator, rows: int) -> Codes:
    """Rows of about NONZEROS latents with log-normal values."""
    latents = np.sort(rng.integers(0, LATENTS, (rows, NONZEROS), dtype=np.uint32), axis=1)
    values = rng.lognormal(-2, 1, (rows, NONZEROS)).astype(np.float32)
    # A latent drawn twice is kept once: zeros are dropped.
    values[:, 1:][latents[:, 1:] == latents[:, :-1]] = 0
    indptr = np.arange(rows + 1, dtype=np.int64) * NONZEROS
    return from_rows(indptr, latents.ravel(), values.ravel())


def build(folder: str, rows: int) -> int:
    """Writes the table and returns its bytes on disk."""
    store = Store(root=folder, home=folder)
    rng = np.random.default_rng(0)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, BATCH):
            size = min(BATCH, rows - start)
            ids = pa.array([f"{row:032x}" for row in range(start, start + size)])
            n_tokens = pa.array(rng.integers(10, 900, size), pa.int32())
            columns = [ids, n_tokens, *to_arrow(synthetic_codes(rng, size))]
            yield pa.record_batch(columns, schema=SCHEMA)

    store.replace(TABLE, batches(), SCHEMA)
    os.sync()  # else the scan pays for the writing
    return sum(file.stat().st_size for file in Path(folder).rglob("*.lance") if file.is_file())


def prototypes(targets: int) -> np.ndarray:
    """Means of EXAMPLES rows each, float32 [targets, LATENTS]."""
    rng = np.random.default_rng(1)
    return np.stack(
        [mean_prototype(synthetic_codes(rng, EXAMPLES), LATENTS) for _ in range(targets)]
    )


def score(folder: str, targets: int) -> Scan:
    """One streamed scan for all targets, the dense formula timed in turn on rows of each batch."""
    store = Store(root=folder, home=folder)
    store.count(TABLE)  # imports lance: a second that is not the scan's
    vectors = prototypes(targets)
    fast, reading, slow = Clock(), Clock(), Clock()
    read = compared = 0
    difference = 0.0
    current: list[pa.RecordBatch] = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal read
        stored = store.scan(TABLE, ["sample_id", "l1", "indices", "values"])
        while True:
            with reading:
                batch = next(stored, None)
            if batch is None:
                return
            read += batch.num_rows
            current[:] = [batch]
            yield batch

    scored = scan(batches(), vectors, "jaccard")
    while True:
        with fast:
            block = next(scored, None)
        if block is None:
            break
        sample = from_arrow(current[0].slice(0, DENSE_ROWS_A_BATCH))
        with slow:
            expected = dense_formula(sample, vectors)
        compared += len(sample)
        difference = max(difference, float(np.abs(block[1][: len(sample)] - expected).max()))
    return Scan(
        rows=read,
        passes=read / store.count(TABLE),
        fast=fast,
        reading=reading,
        dense_rows=compared,
        slow=slow,
        difference=difference,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def dense_formula(codes: Codes, vectors: np.ndarray) -> np.ndarray:
    """Sum of minima over sum of maxima, over all latents of each decoded row."""
    row = np.zeros(LATENTS, np.float32)
    scores = np.zeros((len(codes), len(vectors)), np.float32)
    for i, (begin, end) in enumerate(zip(codes.indptr[:-1], codes.indptr[1:], strict=True)):
        row[:] = 0
        row[codes.indices[begin:end]] = codes.values[begin:end]
        for j, vector in enumerate(vectors):
            scores[i, j] = np.minimum(row, vector).sum() / np.maximum(row, vector).sum()
    return scores


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `work` in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--targets", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = in_fresh_process(build, folder, options.rows)
        print(f"pool           {options.rows:,} rows, {size / 1e6:,.0f} MB in Lance")
        made: Scan = in_fresh_process(score, folder, options.targets)
    dense_wall = made.slow.wall / made.dense_rows * made.rows
    scoring = dense_wall / (made.fast.wall - made.reading.wall)
    print(f"targets        {options.targets}")
    print(f"scans made     {made.passes:g}")
    print(f"rows a second  {made.rows / made.fast.wall:,.0f}, reading included")
    print(f"CPU time       {made.fast.cpu / made.rows * 1e6:.1f} us a row, reading included")
    print(f"peak memory    {made.peak_bytes / 1e9:.2f} GB, of the whole scanning process")
    print(f"dense formula  {made.dense_rows / made.slow.wall:,.0f} rows a second")
    print(
        f"times faster   {dense_wall / made.fast.wall:.0f} reading included, {scoring:.0f} without"
    )
    print(f"difference     {made.difference:.1e} at most, of {made.dense_rows:,} rows' scores")


if __name__ == "__main__":
    main()
