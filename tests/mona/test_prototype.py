"""mona.prototype against means of decoded rows in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mona.codes import Codes, from_rows
from mona.errors import WorkError
from mona.prototype import (
    balanced_dense_prototype,
    balanced_prototype,
    mean_dense_prototype,
    mean_prototype,
)
from mona.similarity import score_codes

LATENTS = 10
VALUE = st.one_of(st.just(0.0), st.floats(2**-14, 60_000, width=16))
EXAMPLES = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(VALUE, min_size=LATENTS, max_size=LATENTS)),
    min_size=1,
    max_size=8,
)


def make(dense: np.ndarray) -> Codes:
    rows, latents = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(len(dense) + 1))
    return from_rows(indptr, latents, dense[rows, latents].astype(np.float32))


def unpack(examples: list[tuple[str, list[float]]]) -> tuple[list[str], np.ndarray]:
    return [name for name, _ in examples], np.array([row for _, row in examples], np.float64)


def reference_balanced(names: list[str], dense: np.ndarray) -> np.ndarray:
    means = []
    for name in sorted(set(names)):
        means.append(dense[[row for row, other in enumerate(names) if other == name]].mean(axis=0))
    return np.mean(means, axis=0)


@settings(deadline=None)
@given(EXAMPLES)
def test_both_prototypes_equal_the_means_of_the_decoded_rows(
    examples: list[tuple[str, list[float]]],
) -> None:
    names, dense = unpack(examples)
    plain, balanced = dense.mean(axis=0), reference_balanced(names, dense)
    close = {"rtol": 1e-6, "atol": 0}
    codes, rows = make(dense), dense.astype(np.float32)
    np.testing.assert_allclose(mean_prototype(codes, LATENTS), plain, **close)
    np.testing.assert_allclose(mean_dense_prototype(rows), plain, **close)
    np.testing.assert_allclose(balanced_prototype(codes, names, LATENTS), balanced, **close)
    np.testing.assert_allclose(balanced_dense_prototype(rows, names), balanced, **close)


@settings(deadline=None)
@given(EXAMPLES, st.randoms())
def test_the_order_of_examples_changes_no_bit(
    examples: list[tuple[str, list[float]]], random: object
) -> None:
    shuffled = list(examples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    (names, dense), (other_names, other) = unpack(examples), unpack(shuffled)
    assert (mean_prototype(make(dense), LATENTS) == mean_prototype(make(other), LATENTS)).all()
    one = balanced_prototype(make(dense), names, LATENTS)
    assert (one == balanced_prototype(make(other), other_names, LATENTS)).all()


def test_a_worked_example_where_the_two_means_differ() -> None:
    dense = np.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 8.0]])
    names = ["sums", "sums", "sums", "verse"]
    assert mean_prototype(make(dense), 2).tolist() == [2.25, 2.0]
    assert balanced_prototype(make(dense), names, 2).tolist() == [1.5, 4.0]


def test_the_prototype_of_one_example_is_that_example() -> None:
    dense = np.zeros((1, LATENTS))
    dense[0, [2, 7]] = np.float16([0.1, 333.3])
    prototype = mean_prototype(make(dense), LATENTS)
    assert prototype.dtype == np.float32
    assert prototype.tolist() == dense[0].tolist()
    assert score_codes(make(dense), prototype[None], "jaccard")[0, 0] == 1.0


def test_examples_with_empty_rows_still_count() -> None:
    dense = np.array([[4.0, 2.0], [0.0, 0.0]])
    assert mean_prototype(make(dense), 2).tolist() == [2.0, 1.0]
    assert mean_prototype(make(np.zeros((3, 2))), 2).tolist() == [0.0, 0.0]


def test_many_float16_rows_do_not_stall_as_a_float16_sum_would() -> None:
    rows = np.ones((10_000, 2), np.float16)
    assert mean_dense_prototype(rows).tolist() == [1.0, 1.0]
    assert mean_prototype(make(rows.astype(np.float64)), 2).tolist() == [1.0, 1.0]


def test_without_examples_there_is_no_prototype() -> None:
    none = make(np.zeros((0, 3)))
    for made in (
        lambda: mean_prototype(none, 3),
        lambda: balanced_prototype(none, [], 3),
        lambda: mean_dense_prototype(np.zeros((0, 3), np.float16)),
        lambda: balanced_dense_prototype(np.zeros((0, 3), np.float16), []),
    ):
        with pytest.raises(WorkError, match="at least one example"):
            made()


def test_wrong_inputs_are_named() -> None:
    codes = make(np.eye(3))
    with pytest.raises(WorkError, match="latent 2 and the SAE has 2"):
        mean_prototype(codes, 2)
    with pytest.raises(ValueError, match="2 subtasks for 3 examples"):
        balanced_prototype(codes, ["a", "b"], 3)
    with pytest.raises(WorkError, match="not finite"):
        mean_dense_prototype(np.array([[1.0, np.nan]], np.float32))
