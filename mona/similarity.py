"""Similarity of stored rows to task prototypes: many rows, P prototypes, one pass.

Belongs here: the three similarities, over sparse codes and over dense rows, in memory and
streamed. Making prototypes is `mona.prototype`; ranking scores is `mona.selection`.

With z a row and p a prototype (higher is always more alike):

- `jaccard`, generalised Jaccard (arXiv 2503.15573, the paper's selection score):
  J = sum_k min(z_k, p_k) / sum_k max(z_k, p_k), for values >= 0, computed as
  m / (|z|_1 + |p|_1 - m) with m = sum_k min(z_k, p_k). Only a row's non-zeros and its stored
  L1 are read. Two empty vectors score 0, and so does an empty one against anything.
- `cosine`: <z, p> / (|z|_2 |p|_2); 0 when either is all zeros.
- `euclidean`: the negative distance -|z - p|_2, from |z|^2 + |p|^2 - 2 <z, p>, so a row's
  distance to itself is 0 up to about 1e-8 of its norm.

Sums are float64 and per row, so a score does not depend on which rows share its batch; m is
rounded to float32 as the stored L1 was, which makes J(z, z) exactly 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from mona.codes import Codes, from_arrow, row_sums
from mona.errors import WorkError
from mona.spec import Similarity

# Non-zeros handled at a time: what is gathered for them stays in a core's cache.
_BLOCK = 32_768
# Prototypes that lie side by side, latent by latent: one visit to memory fetches all of them.
_LANES = 8


@dataclass(frozen=True, slots=True)
class _Prototypes:
    """P checked prototypes with what the formulas need of them."""

    values: np.ndarray  # float64 [P, d]
    similarities: tuple[Similarity, ...]  # [P]
    l1: np.ndarray  # float32 [P]
    squares: np.ndarray  # float64 [P], squared L2 norms
    lanes: list[np.ndarray]  # the values again, _LANES prototypes at a time: float32 [d, _LANES]

    @property
    def need_squares(self) -> bool:
        return any(similarity != "jaccard" for similarity in self.similarities)


def _prepared(
    prototypes: np.ndarray, similarities: Similarity | Sequence[Similarity], *, signed: bool
) -> _Prototypes:
    """Checks prototypes [P, d]. Signs are allowed where `signed` and the similarity is not
    jaccard."""
    if prototypes.ndim != 2:
        raise ValueError(f"prototypes must be [P, d], got shape {prototypes.shape}")
    count = len(prototypes)
    kinds = (similarities,) * count if isinstance(similarities, str) else tuple(similarities)
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} similarities for {count} prototypes")
    values = np.ascontiguousarray(prototypes, dtype=np.float64)
    l1 = np.zeros(count, np.float32)
    for row, (prototype, kind) in enumerate(zip(values, kinds, strict=True)):
        if not np.isfinite(prototype).all():
            raise WorkError(f"prototype {row} holds a value that is not finite (NaN or infinity)")
        if (kind == "jaccard" or not signed) and (prototype < 0).any():
            raise WorkError(f"prototype {row} holds a negative value ({prototype.min():.6g})")
        # Over the non-zeros alone, as a stored row's L1 is: equal rows give equal bits.
        nonzero = np.abs(prototype[prototype != 0])
        l1[row] = row_sums(nonzero, np.array([0, len(nonzero)]))[0]
    lanes = []
    for start in range(0, count, _LANES):
        part = values[start : start + _LANES]
        lane = np.zeros((part.shape[1], _LANES), np.float32)
        lane[:, : len(part)] = part.T
        lanes.append(lane)
    return _Prototypes(values, kinds, l1, (values * values).sum(axis=1), lanes)


def _sparse_sums(codes: Codes, prototypes: _Prototypes) -> tuple[np.ndarray, np.ndarray]:
    """The inner loop. For each row: sum_k min(z_k, p_k) where the similarity is jaccard, else
    <z, p>, as float64 [S, P]; and |z|_2^2 as float64 [S] (zeros when nothing needs it)."""
    sums = np.zeros((len(codes), len(prototypes.values)))
    squares = np.zeros(len(codes))
    # reduceat misreads empty rows; they hold no non-zeros, so leaving them out moves nothing.
    rows = np.flatnonzero(np.diff(codes.indptr))
    starts, ends = codes.indptr[rows], codes.indptr[rows + 1]

    bounds = [0]
    while bounds[-1] < len(rows):
        full = np.searchsorted(ends, starts[bounds[-1]] + _BLOCK, side="right")
        bounds.append(max(bounds[-1] + 1, int(full)))
    blocks = list(pairwise(bounds))
    workers = os.cpu_count() or 1

    def every_nth_block(worker: int) -> None:
        for first, last in blocks[worker::workers]:
            block = rows[first:last]
            begin, end = starts[first], ends[last - 1]
            offsets = starts[first:last] - begin
            latents = codes.indices[begin:end].astype(np.intp)
            values = codes.values[begin:end].astype(np.float32)
            for column, kind in enumerate(prototypes.similarities):
                if column % _LANES == 0:
                    # The caller has checked the latents; "clip" only spares a second check.
                    gathered = prototypes.lanes[column // _LANES].take(latents, 0, mode="clip")
                weights = gathered[:, column % _LANES]
                if kind == "jaccard":
                    terms = np.minimum(weights, values)
                else:
                    terms = np.multiply(weights, values, dtype=np.float64)
                sums[block, column] = np.add.reduceat(terms, offsets, dtype=np.float64)
            if prototypes.need_squares:
                terms = np.multiply(values, values, dtype=np.float64)
                squares[block] = np.add.reduceat(terms, offsets)

    # Blocks write rows of their own, and numpy lets go of the interpreter inside each call.
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(every_nth_block, range(min(workers, len(blocks)))))
    return sums, squares


def _dense_sums(
    rows: np.ndarray, prototypes: _Prototypes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_sparse_sums` for rows [S, d], with their L1 norms, float32 [S], in the middle."""
    sums = np.zeros((len(rows), len(prototypes.values)))
    l1 = np.zeros(len(rows), np.float32)
    squares = np.zeros(len(rows))
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        values = rows[block].astype(np.float64)
        for column, kind in enumerate(prototypes.similarities):
            combine = np.minimum if kind == "jaccard" else np.multiply
            # A product of matrices would be faster, but its last bits depend on its shape.
            sums[block, column] = combine(values, prototypes.values[column]).sum(axis=1)
        l1[block] = np.abs(values).sum(axis=1)
        squares[block] = (values * values).sum(axis=1)
    return sums, l1, squares


def _scores(
    sums: np.ndarray, l1: np.ndarray, squares: np.ndarray, prototypes: _Prototypes
) -> np.ndarray:
    """Sums [S, P] and norms [S] into scores, float32 [S, P]. NaN stays NaN."""
    scores = np.zeros(sums.shape, np.float32)
    for column, kind in enumerate(prototypes.similarities):
        if kind == "euclidean":
            gap = squares + prototypes.squares[column] - 2 * sums[:, column]
            scores[:, column] = 0.0 - np.sqrt(np.maximum(gap, 0))
            continue
        if kind == "jaccard":
            above = sums[:, column].astype(np.float32).astype(np.float64)
            below = l1.astype(np.float64) + float(prototypes.l1[column]) - above
        else:
            above = sums[:, column]
            below = np.sqrt(squares) * np.sqrt(prototypes.squares[column])
        ratio = np.zeros(len(sums))
        np.divide(above, below, out=ratio, where=below != 0)
        # Rounding may pass 1 by one unit in the last place; both ratios are bounded by 1.
        scores[:, column] = np.clip(ratio, -1.0, 1.0)
    return scores


def _score_codes(codes: Codes, prototypes: _Prototypes) -> np.ndarray:
    latents = prototypes.values.shape[1]
    if len(codes.indices) and int(codes.indices.max()) >= latents:
        raise WorkError(
            f"codes hold latent {int(codes.indices.max())}, the prototypes have {latents} latents"
        )
    sums, squares = _sparse_sums(codes, prototypes)
    return _scores(sums, codes.l1, squares, prototypes)


def _score_dense(rows: np.ndarray, prototypes: _Prototypes) -> np.ndarray:
    if rows.ndim != 2 or rows.shape[1] != prototypes.values.shape[1]:
        raise WorkError(
            f"rows of shape {rows.shape} do not meet prototypes of "
            f"{prototypes.values.shape[1]} dimensions"
        )
    if "jaccard" in prototypes.similarities and (rows < 0).any():
        raise WorkError("jaccard needs non-negative values and the dense rows have negative ones")
    sums, l1, squares = _dense_sums(rows, prototypes)
    return _scores(sums, l1, squares, prototypes)


def score_codes(
    codes: Codes, prototypes: np.ndarray, similarities: Similarity | Sequence[Similarity]
) -> np.ndarray:
    """Scores of S sparse rows, float32 [S, P], against prototypes float32 [P, d_sae].

    `similarities` is one for all prototypes or one each. Raises WorkError when a prototype
    has a negative value, NaN or infinity, or when a row holds a latent it does not have.

    >>> import numpy as np, mona
    >>> from mona.codes import from_rows
    >>> codes = from_rows(np.array([0, 1, 2]), np.array([0, 2]), np.array([1.0, 3.0]))
    >>> mona.score_codes(codes, np.array([[1.0, 0.0, 1.0]], np.float32), "jaccard").tolist()
    [[0.5], [0.25]]
    """
    return _score_codes(codes, _prepared(prototypes, similarities, signed=False))


def score_dense(
    rows: np.ndarray, prototypes: np.ndarray, similarities: Similarity | Sequence[Similarity]
) -> np.ndarray:
    """Scores of dense rows, float16 or float32 [S, d], as float32 [S, P], against [P, d].

    Raises WorkError on shapes that do not meet, on a prototype that is not finite, and on
    negative values of either side under jaccard. A row with NaN scores NaN.
    """
    return _score_dense(rows, _prepared(prototypes, similarities, signed=True))


def scan(
    batches: Iterable[pa.RecordBatch],
    prototypes: np.ndarray,
    similarities: Similarity | Sequence[Similarity],
) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """(sample ids, scores [B, P]) of each batch with the columns `sample_id`, `l1`, `indices`
    and `values`. One pass however many prototypes; memory is one batch. Raises as
    `score_codes`."""
    prepared = _prepared(prototypes, similarities, signed=False)
    for batch in batches:
        yield batch.column("sample_id"), _score_codes(from_arrow(batch), prepared)


def scan_dense(
    batches: Iterable[pa.RecordBatch],
    column: str,
    prototypes: np.ndarray,
    similarities: Similarity | Sequence[Similarity],
) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """As `scan`, over the fixed-size-list `column` beside `sample_id`. Raises as
    `score_dense`, and WorkError when a row of the column is null."""
    prepared = _prepared(prototypes, similarities, signed=True)
    for batch in batches:
        vectors = batch.column(column)
        if vectors.null_count:
            sample = batch.column("sample_id")[vectors.is_null().to_pylist().index(True)]
            raise WorkError(f"sample {sample} has no value in column '{column}'")
        rows = vectors.flatten().to_numpy(zero_copy_only=False)
        rows = rows.reshape(len(vectors), vectors.type.list_size)
        yield batch.column("sample_id"), _score_dense(rows, prepared)
