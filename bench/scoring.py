"""Scores a synthetic pool on disk against several targets in one scan.

    python -m bench.scoring [--rows 200000] [--targets 6]

Prints rows a second, scans made, the scanning process's peak memory, and how many times
slower the dense formula is for a row: sum of minima over sum of maxima, all latents of each
decoded row, timed on a share of the same rows, whose scores must agree. Latents are drawn
uniformly, the worst case for the cache.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa

from mona.codes import Codes, from_arrow, from_rows, to_arrow
from mona.prototype import mean_prototype
from mona.similarity import scan
from resources.store import Store

LATENTS = 131_072
NONZEROS = 600
DENSE_ROWS = 300
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


@dataclass(frozen=True, slots=True)
class Scan:
    """What one process measured: seconds, passes over the table, peak bytes, first scores."""

    seconds: float
    passes: float
    peak_bytes: int
    first_scores: np.ndarray


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
    return store.local_bytes(TABLE)


def prototypes(targets: int) -> np.ndarray:
    """Means of EXAMPLES rows each, float32 [targets, LATENTS]."""
    rng = np.random.default_rng(1)
    return np.stack(
        [mean_prototype(synthetic_codes(rng, EXAMPLES), LATENTS) for _ in range(targets)]
    )


def score(folder: str, targets: int) -> Scan:
    """One streamed scan for all targets."""
    store = Store(root=folder, home=folder)
    vectors = prototypes(targets)
    read = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for batch in store.scan(TABLE, ["sample_id", "l1", "indices", "values"]):
            read += batch.num_rows
            yield batch

    started = time.perf_counter()
    first = np.concatenate([block for _, block in scan(batches(), vectors, "jaccard")])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Scan(seconds, read / store.count(TABLE), peak, first[:DENSE_ROWS])


def dense(folder: str, targets: int) -> tuple[float, np.ndarray]:
    """Seconds and scores of the dense formula for the table's first DENSE_ROWS rows."""
    store = Store(root=folder, home=folder)
    vectors = prototypes(targets)
    batch = next(store.scan(TABLE, ["l1", "indices", "values"], batch_rows=DENSE_ROWS))
    codes = from_arrow(batch.slice(0, DENSE_ROWS))
    row = np.zeros(LATENTS, np.float32)
    scores = np.zeros((len(codes), targets), np.float32)
    started = time.perf_counter()
    for i, (begin, end) in enumerate(zip(codes.indptr[:-1], codes.indptr[1:], strict=True)):
        row[:] = 0
        row[codes.indices[begin:end]] = codes.values[begin:end]
        for j, vector in enumerate(vectors):
            scores[i, j] = np.minimum(row, vector).sum() / np.maximum(row, vector).sum()
    return time.perf_counter() - started, scores


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
        seconds, expected = in_fresh_process(dense, folder, options.targets)
    difference = float(np.abs(made.first_scores - expected).max())
    per_row, per_dense_row = made.seconds / options.rows, seconds / len(expected)
    print(f"targets        {options.targets}")
    print(f"scans made     {made.passes:g}")
    print(f"rows a second  {1 / per_row:,.0f} ({made.seconds:.1f} s, reading included)")
    print(f"peak memory    {made.peak_bytes / 1e9:.2f} GB, of the whole scanning process")
    print(f"dense formula  {1 / per_dense_row:,.0f} rows a second: {per_dense_row / per_row:.0f}x")
    print(f"difference     {difference:.1e} at most, of {len(expected)} rows' scores")


if __name__ == "__main__":
    main()
