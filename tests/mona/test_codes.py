"""mona.codes: what is stored, its L1, and the way to Arrow and back."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mona.codes import Codes, concatenate, from_arrow, from_rows, row_sums, to_arrow
from mona.errors import WorkError

Rows = list[dict[int, float]]

# Values a float16 holds exactly, so that nothing is lost on the way in.
HALVES = st.floats(2**-14, 60_000, width=16)
ROWS = st.lists(st.dictionaries(st.integers(0, 40), HALVES, max_size=6), max_size=7)


def make(rows: Rows) -> Codes:
    ordered = [sorted(row.items()) for row in rows]
    indptr = np.cumsum([0, *(len(row) for row in ordered)])
    indices = np.array([latent for row in ordered for latent, _ in row], dtype=np.int64)
    values = np.array([value for row in ordered for _, value in row], dtype=np.float32)
    return from_rows(indptr, indices, values)


def as_dicts(codes: Codes) -> Rows:
    return [
        dict(zip(codes.indices[a:b].tolist(), codes.values[a:b].tolist(), strict=True))
        for a, b in zip(codes.indptr[:-1], codes.indptr[1:], strict=True)
    ]


def as_batch(codes: Codes) -> pa.RecordBatch:
    return pa.record_batch(list(to_arrow(codes)), names=["l1", "indices", "values"])


def test_from_rows_keeps_dtypes_and_shapes() -> None:
    codes = make([{3: 1.5, 9: 0.25}, {}, {0: 2.0}])
    assert len(codes) == 3
    assert codes.indptr.dtype == np.int64
    assert codes.indptr.tolist() == [0, 2, 2, 3]
    assert codes.indices.dtype == np.uint32
    assert codes.values.dtype == np.float16
    assert codes.l1.dtype == np.float32
    assert codes.l1.tolist() == [1.75, 0.0, 2.0]


def test_values_that_vanish_in_float16_are_dropped_with_their_latents() -> None:
    codes = make([{1: 1e-9, 2: 1.0}, {5: 1e-9}, {7: 3.0}])
    assert as_dicts(codes) == [{2: 1.0}, {}, {7: 3.0}]
    assert codes.indptr.tolist() == [0, 1, 1, 2]


def test_l1_is_of_the_stored_values_not_of_the_given_ones() -> None:
    codes = make([{0: 0.1, 1: 0.2, 2: 0.3}])
    stored = np.array([0.1, 0.2, 0.3], np.float32).astype(np.float16)
    assert codes.l1[0] == np.float32(math.fsum(float(value) for value in stored))
    assert codes.l1[0] != np.float32(0.6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (-0.5, "negative"),
        (70_000.0, "does not fit float16"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused(value: float, message: str) -> None:
    with pytest.raises(WorkError, match=message):
        make([{0: 1.0, 4: value}])


def test_no_rows_and_only_empty_rows() -> None:
    assert len(make([])) == 0
    empty = make([{}, {}])
    assert len(empty) == 2
    assert empty.l1.tolist() == [0.0, 0.0]
    assert len(from_arrow(as_batch(empty))) == 2
    assert len(concatenate([])) == 0


@settings(deadline=None)
@given(ROWS)
def test_row_sums_are_those_of_python(rows: Rows) -> None:
    codes = make(rows)
    expected = [math.fsum(row.values()) for row in as_dicts(codes)]
    assert row_sums(codes.values, codes.indptr).tolist() == expected


def test_a_rows_sum_does_not_depend_on_the_rows_around_it() -> None:
    # Beside large values a running sum loses the last bits of the smallest ones.
    small = dict.fromkeys(range(41), 2.0 ** (-14))
    large = dict.fromkeys(range(40), 60000.0)
    alone = make([small])
    crowded = make([large] * 30_000 + [small])
    assert crowded.l1[-1] == alone.l1[0]
    sums = row_sums(crowded.values, crowded.indptr)
    assert sums[-1] == 41 * 2.0**-14


@settings(deadline=None)
@given(ROWS)
def test_arrow_gives_back_what_it_was_given(rows: Rows) -> None:
    codes = make(rows)
    back = from_arrow(as_batch(codes))
    assert as_dicts(back) == as_dicts(codes)
    assert back.l1.tolist() == codes.l1.tolist()
    assert (back.indices.dtype, back.values.dtype) == (np.uint32, np.float16)


@settings(deadline=None)
@given(ROWS, st.data())
def test_a_slice_of_a_batch_reads_its_own_rows(rows: Rows, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows)))
    length = data.draw(st.integers(0, len(rows) - start))
    codes = make(rows)
    part = from_arrow(as_batch(codes).slice(start, length))
    assert as_dicts(part) == as_dicts(codes)[start : start + length]
    assert part.indptr[0] == 0
    assert part.l1.tolist() == codes.l1[start : start + length].tolist()


@settings(deadline=None)
@given(ROWS, ROWS)
def test_a_table_of_several_chunks_and_concatenate_agree(first: Rows, second: Rows) -> None:
    parts = [make(first), make(second)]
    table = pa.Table.from_batches([as_batch(part) for part in parts])
    joined = concatenate(parts)
    assert as_dicts(from_arrow(table)) == as_dicts(joined) == as_dicts(make(first + second))
    assert joined.l1.tolist() == make(first + second).l1.tolist()


def test_rows_whose_lists_differ_in_length_are_refused() -> None:
    batch = pa.record_batch(
        [
            pa.array([1.0, 1.0], pa.float32()),
            pa.array([[1, 2], [3]], pa.list_(pa.uint32())),
            pa.array([np.float16([1.0, 2.0]), np.float16([])], pa.list_(pa.float16())),
        ],
        names=["l1", "indices", "values"],
    )
    with pytest.raises(WorkError, match=r"row 1 .* not as many values as indices"):
        from_arrow(batch)
