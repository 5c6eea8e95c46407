"""Sparse codes of samples: the container, its Arrow form and its two invariants.

Row i holds the latents `indices[indptr[i]:indptr[i+1]]` (ascending, no zeros) with
`values` (float16, all > 0) and `l1[i]`, the float32 sum of the stored values. How codes
are made is in `mona.sae`; how they are compared is in `mona.similarity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mona.errors import WorkError

FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of S samples in compressed sparse rows.

    indptr: int64 [S + 1]; indices: uint32 [nnz]; values: float16 [nnz]; l1: float32 [S].
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    l1: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1


def row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sum of each row's slice, accumulated in float64; an empty row gives 0. Shape [S]."""
    # reduceat misreads empty rows, so they are left out: they hold no values. A prefix sum
    # would make a row's last bits depend on the rows before it.
    sums = np.zeros(len(indptr) - 1, dtype=np.float64)
    filled = np.flatnonzero(np.diff(indptr))
    if len(filled):
        sums[filled] = np.add.reduceat(values.astype(np.float64), indptr[filled])
    return sums


def from_rows(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> Codes:
    """Codes from float32 row slices: cast to float16, zeros dropped, L1 of what is stored.

    Raises WorkError on a value that is not finite, negative, or above the float16 range.
    """
    if len(values) and not np.isfinite(values).all():
        raise WorkError("a code holds a value that is not finite (NaN or infinity)")
    if len(values) and float(values.max()) > FLOAT16_MAX:
        raise WorkError(
            f"a code value of {float(values.max()):.6g} does not fit float16 "
            f"(max {FLOAT16_MAX:.0f})"
        )
    if len(values) and float(values.min()) < 0:
        raise WorkError(f"a code holds a negative value ({float(values.min()):.6g})")
    stored = values.astype(np.float16)
    kept = stored > 0
    counts = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(kept, out=counts[1:])
    new_indptr = counts[indptr]
    stored = stored[kept]
    return Codes(
        indptr=new_indptr,
        indices=indices[kept].astype(np.uint32),
        values=stored,
        l1=row_sums(stored, new_indptr).astype(np.float32),
    )


def to_arrow(codes: Codes) -> tuple[pa.Array, pa.Array, pa.Array]:
    """(l1 float32, indices list<uint32>, values list<float16>), S rows each."""
    offsets = pa.array(codes.indptr, type=pa.int32())
    return (
        pa.array(codes.l1, type=pa.float32()),
        pa.ListArray.from_arrays(offsets, pa.array(codes.indices, type=pa.uint32())),
        pa.ListArray.from_arrays(offsets, pa.array(codes.values, type=pa.float16())),
    )


def _one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def from_arrow(table: pa.Table | pa.RecordBatch) -> Codes:
    """Codes from the columns `l1`, `indices` and `values`, without copying where Arrow allows.

    Raises WorkError when a row has not as many values as indices.
    """
    indices = _one_array(table.column("indices"))
    values = _one_array(table.column("values"))
    l1 = _one_array(table.column("l1"))
    offsets = indices.offsets.to_numpy().astype(np.int64)
    value_offsets = values.offsets.to_numpy().astype(np.int64)
    start, end = int(offsets[0]), int(offsets[-1])
    value_start, value_end = int(value_offsets[0]), int(value_offsets[-1])
    unlike = np.flatnonzero(np.diff(offsets) != np.diff(value_offsets))
    if len(unlike):
        raise WorkError(f"row {unlike[0]} of the codes has not as many values as indices")
    return Codes(
        indptr=offsets - start,
        indices=indices.values.slice(start, end - start).to_numpy(zero_copy_only=False),
        values=values.values.slice(value_start, value_end - value_start).to_numpy(
            zero_copy_only=False
        ),
        l1=l1.to_numpy(zero_copy_only=False),
    )


def concatenate(parts: Sequence[Codes]) -> Codes:
    """Rows of all parts, in order."""
    if not parts:
        return Codes(
            np.zeros(1, np.int64),
            np.zeros(0, np.uint32),
            np.zeros(0, np.float16),
            np.zeros(0, np.float32),
        )
    shifts = np.cumsum([0, *(part.indptr[-1] for part in parts[:-1])])
    indptr = np.concatenate(
        [[0], *(part.indptr[1:] + shift for part, shift in zip(parts, shifts, strict=True))]
    ).astype(np.int64)
    return Codes(
        indptr,
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.l1 for part in parts]),
    )
