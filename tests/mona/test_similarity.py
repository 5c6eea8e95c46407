"""mona.similarity against the dense formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mona import similarity
from mona.codes import Codes, from_rows, to_arrow
from mona.errors import WorkError
from mona.similarity import scan, scan_dense, score_codes, score_dense
from mona.spec import Similarity

LATENTS = 12
HALVES = st.floats(0, 1000, width=16)
DENSE_ROW = st.lists(
    st.one_of(st.just(0.0), st.just(0.0), HALVES), min_size=LATENTS, max_size=LATENTS
)
DENSE_ROWS = st.lists(DENSE_ROW, min_size=1, max_size=6)
PROTOTYPES = st.lists(
    st.lists(
        st.one_of(st.just(0.0), st.floats(0, 1000, width=32)), min_size=LATENTS, max_size=LATENTS
    ),
    min_size=1,
    max_size=4,
)
KINDS: tuple[Similarity, ...] = ("jaccard", "cosine", "euclidean")


def make(dense: np.ndarray) -> Codes:
    rows, latents = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(len(dense) + 1))
    return from_rows(indptr, latents, dense[rows, latents].astype(np.float32))


def stored(dense: list[list[float]]) -> np.ndarray:
    """What float16 keeps of the rows, as float64."""
    return np.array(dense, np.float32).astype(np.float16).astype(np.float64)


def reference_jaccard(z: np.ndarray, p: np.ndarray) -> float:
    above, below = np.minimum(z, p).sum(), np.maximum(z, p).sum()
    return float(above / below) if below else 0.0


def reference_cosine(z: np.ndarray, p: np.ndarray) -> float:
    norms = float(np.linalg.norm(z) * np.linalg.norm(p))
    return float(z @ p) / norms if norms else 0.0


def reference_euclidean(z: np.ndarray, p: np.ndarray) -> float:
    return -float(np.linalg.norm(z - p))


REFERENCES: dict[Similarity, Callable[[np.ndarray, np.ndarray], float]] = {
    "jaccard": reference_jaccard,
    "cosine": reference_cosine,
    "euclidean": reference_euclidean,
}


def test_jaccard_of_a_worked_example() -> None:
    # min: 1 + 0 + 2 = 3; max: 2 + 4 + 3 + 1 = 10.
    z = np.array([[2.0, 4.0, 2.0, 0.0]])
    p = np.array([[1.0, 0.0, 3.0, 1.0]], np.float32)
    assert score_codes(make(z), p, "jaccard") == np.float32(3 / 10)


def test_scores_are_float32_rows_by_prototypes() -> None:
    scores = score_codes(make(np.eye(5, LATENTS)), np.ones((3, LATENTS), np.float32), "jaccard")
    assert scores.shape == (5, 3)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(DENSE_ROWS, PROTOTYPES)
def test_every_similarity_equals_its_dense_formula(
    kind: Similarity, dense: list[list[float]], prototypes: list[list[float]]
) -> None:
    z, p = stored(dense), np.array(prototypes, np.float32)
    expected = [[REFERENCES[kind](row, q.astype(np.float64)) for q in p] for row in z]
    # A distance is a difference of squares, exact to about 1e-8 of the larger norm.
    slack = 1e-7 * max(np.linalg.norm(z), np.linalg.norm(p.astype(float)), 1e-3)
    tolerance = {"rtol": 2e-6, "atol": slack if kind == "euclidean" else 1e-9}
    np.testing.assert_allclose(score_codes(make(z), p, kind), expected, **tolerance)
    np.testing.assert_allclose(score_dense(z.astype(np.float16), p, kind), expected, **tolerance)


@settings(deadline=None)
@given(DENSE_ROWS)
def test_a_stored_row_is_exactly_like_itself(dense: list[list[float]]) -> None:
    z = stored(dense)
    scores = score_codes(make(z), z.astype(np.float32), "jaccard")
    dense_scores = score_dense(z.astype(np.float16), z.astype(np.float32), "jaccard")
    for row in range(len(z)):
        expected = 1.0 if z[row].any() else 0.0
        assert scores[row, row] == expected
        assert dense_scores[row, row] == expected


def test_long_rows_are_exactly_like_themselves_too() -> None:
    rng = np.random.default_rng(3)
    z = rng.lognormal(0, 3, (4, 100_000)).clip(max=60_000) * (rng.random((4, 100_000)) < 0.5)
    z = z.astype(np.float16).astype(np.float64)
    assert np.diag(score_codes(make(z), z.astype(np.float32), "jaccard")).tolist() == [1.0] * 4


@settings(deadline=None)
@given(DENSE_ROWS)
def test_jaccard_is_symmetric(dense: list[list[float]]) -> None:
    z = stored(dense)
    scores = score_codes(make(z), z.astype(np.float32), "jaccard")
    assert (scores == scores.T).all()


@settings(deadline=None)
@given(DENSE_ROWS, PROTOTYPES)
def test_bounds(dense: list[list[float]], prototypes: list[list[float]]) -> None:
    codes, p = make(stored(dense)), np.array(prototypes, np.float32)
    for kind, low, high in (("jaccard", 0, 1), ("cosine", 0, 1), ("euclidean", -np.inf, 0)):
        scores = score_codes(codes, p, kind)  # type: ignore[arg-type]
        assert (scores >= low).all()
        assert (scores <= high).all()


@settings(deadline=None)
@given(DENSE_ROW, DENSE_ROW, st.integers(0, LATENTS - 1), st.floats(0, 1))
def test_a_step_towards_the_prototype_never_lowers_jaccard(
    row: list[float], prototype: list[float], latent: int, share: float
) -> None:
    z, p = stored([row]), stored([prototype])
    nearer = z.copy()
    nearer[0, latent] += share * (p[0, latent] - z[0, latent])
    nearer = nearer.astype(np.float16).astype(np.float64)
    before, after = (score_codes(make(x), p.astype(np.float32), "jaccard") for x in (z, nearer))
    # One unit in the last place of float32: m and both norms are rounded to it.
    assert after[0, 0] >= before[0, 0] - 3e-7


def test_empty_rows_and_empty_prototypes_score_zero() -> None:
    z = np.zeros((3, LATENTS))
    z[1, 4] = 2.0
    p = np.zeros((2, LATENTS), np.float32)
    p[1, 4] = 2.0
    assert score_codes(make(z), p, "jaccard").tolist() == [[0, 0], [0, 1], [0, 0]]
    assert score_codes(make(z), p, "cosine").tolist() == [[0, 0], [0, 1], [0, 0]]
    assert score_codes(make(z), p, "euclidean").tolist() == [[0, -2], [-2, 0], [0, -2]]


@settings(deadline=None)
@given(DENSE_ROWS, PROTOTYPES, st.integers(1, 40))
def test_the_block_size_changes_no_bit(
    dense: list[list[float]], prototypes: list[list[float]], block: int
) -> None:
    codes, p = make(stored(dense)), np.array(prototypes, np.float32)
    rows = stored(dense).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        before = [score_codes(codes, p, k) for k in KINDS] + [
            score_dense(rows, p, k) for k in KINDS
        ]
        patch.setattr(similarity, "_BLOCK", block)
        after = [score_codes(codes, p, k) for k in KINDS] + [score_dense(rows, p, k) for k in KINDS]
    for one, other in zip(before, after, strict=True):
        assert (one == other).all()


def test_neither_order_nor_company_changes_a_score() -> None:
    rng = np.random.default_rng(0)
    z = rng.lognormal(0, 2, (300, 2000)) * (rng.random((300, 2000)) < 0.3)
    z = z.astype(np.float16).astype(np.float64)
    p = rng.lognormal(0, 2, (3, 2000)).astype(np.float32)
    order = rng.permutation(300)
    for kind in KINDS:
        scores = score_codes(make(z), p, kind)
        assert (score_codes(make(z[order]), p, kind) == scores[order]).all()
        alone = np.vstack([score_codes(make(z[i : i + 1]), p, kind) for i in range(40)])
        assert (alone == scores[:40]).all()
        columns = [score_codes(make(z), p[i : i + 1], kind) for i in range(3)]
        assert (np.hstack(columns) == scores).all()


def test_each_prototype_may_have_its_own_similarity() -> None:
    rng = np.random.default_rng(1)
    z = stored((rng.random((20, LATENTS)) * (rng.random((20, LATENTS)) < 0.4)).tolist())
    p = rng.random((3, LATENTS)).astype(np.float32)
    together = score_codes(make(z), p, KINDS)
    for column, kind in enumerate(KINDS):
        assert (together[:, column] == score_codes(make(z), p, kind)[:, column]).all()
    with pytest.raises(ValueError, match="2 similarities for 3 prototypes"):
        score_codes(make(z), p, ["jaccard", "cosine"])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_bad_prototype_is_refused(value: float) -> None:
    p = np.ones((2, LATENTS), np.float32)
    p[1, 3] = value
    for kind in KINDS:
        with pytest.raises(WorkError, match="prototype 1 holds"):
            score_codes(make(np.eye(2, LATENTS)), p, kind)


def test_a_latent_the_prototype_does_not_have_is_refused() -> None:
    with pytest.raises(WorkError, match="latent 11, the prototypes have 10"):
        score_codes(make(np.ones((1, LATENTS))), np.ones((1, 10), np.float32), "jaccard")


def test_a_damaged_row_scores_nan_and_never_zero() -> None:
    z = np.eye(2, LATENTS)
    codes = make(z)
    codes.values[1] = np.nan
    rows = z.astype(np.float32)
    rows[1, 1] = np.nan
    for kind in KINDS:
        p = np.ones((1, LATENTS), np.float32)
        assert np.isnan(score_codes(codes, p, kind)).ravel().tolist() == [False, True]
        assert np.isnan(score_dense(rows, p, kind)).ravel().tolist() == [False, True]


def test_dense_rows_may_have_signs_except_under_jaccard() -> None:
    rows = np.array([[1.0, -2.0, 0.0]], np.float32)
    p = np.array([[-1.0, 2.0, 0.0]], np.float32)
    assert score_dense(rows, p, "cosine")[0, 0] == -1.0
    assert score_dense(rows, p, "euclidean")[0, 0] == np.float32(-np.sqrt(20))
    with pytest.raises(WorkError, match="prototype 0 holds a negative"):
        score_dense(np.abs(rows), p, "jaccard")
    with pytest.raises(WorkError, match="dense rows have negative"):
        score_dense(rows, np.abs(p), "jaccard")
    with pytest.raises(WorkError, match="do not meet"):
        score_dense(rows, p[:, :2], "cosine")


def batches_of(z: np.ndarray, size: int) -> list[pa.RecordBatch]:
    ids = pa.array([f"s{row:03}" for row in range(len(z))])
    columns = [ids, *to_arrow(make(z))]
    whole = pa.record_batch(columns, names=["sample_id", "l1", "indices", "values"])
    return [whole.slice(start, size) for start in range(0, len(z), size)]


@pytest.mark.parametrize("size", [1, 7, 50])
def test_scan_streams_the_scores_of_the_whole(size: int) -> None:
    rng = np.random.default_rng(2)
    z = stored((rng.random((50, LATENTS)) * (rng.random((50, LATENTS)) < 0.3)).tolist())
    p = rng.random((3, LATENTS)).astype(np.float32)
    given_out = 0

    def feed() -> object:
        nonlocal given_out
        for batch in batches_of(z, size):
            given_out += 1
            yield batch

    seen: list[str] = []
    scores = []
    for taken, (ids, block) in enumerate(scan(feed(), p, KINDS), start=1):  # type: ignore[arg-type]
        assert given_out == taken
        seen += ids.to_pylist()
        scores.append(block)
    assert seen == [f"s{row:03}" for row in range(50)]
    assert (np.vstack(scores) == score_codes(make(z), p, KINDS)).all()


@pytest.mark.parametrize("size", [1, 7, 50])
def test_scan_dense_streams_the_scores_of_the_whole(size: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 8)).astype(np.float16)
    p = rng.normal(size=(2, 8)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float16()), 8)
    ids = pa.array([f"s{row:03}" for row in range(50)])
    whole = pa.record_batch([ids, column], names=["sample_id", "mean"])
    parts = [whole.slice(start, size) for start in range(0, 50, size)]
    scores = np.vstack([block for _, block in scan_dense(parts, "mean", p, "cosine")])
    assert (scores == score_dense(rows, p, "cosine")).all()


def test_scan_dense_names_the_sample_without_a_value() -> None:
    column = pa.array([[1.0, 2.0], None], pa.list_(pa.float16(), 2))
    batch = pa.record_batch([pa.array(["a", "b"]), column], names=["sample_id", "mean"])
    with pytest.raises(WorkError, match="sample b has no value in column 'mean'"):
        list(scan_dense([batch], "mean", np.ones((1, 2), np.float32), "cosine"))
