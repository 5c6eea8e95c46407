"""mona.evaluation.intervals against published and exactly known values."""

from __future__ import annotations

import numpy as np
import pytest

from mona.evaluation.intervals import (
    bootstrap_macro,
    bootstrap_mean,
    bootstrap_ratio,
    paired_bootstrap,
    wilson,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.low <= found.value <= found.high


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = RNG.normal(3, 2, 400)
    found = bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == bootstrap_mean(values, seed=1)
    assert found != bootstrap_mean(values, seed=2)


def test_a_constant_has_no_width_and_nothing_has_no_interval() -> None:
    same = bootstrap_mean(np.full(7, 2.5), seed=0)
    assert (same.value, same.low, same.high) == (2.5, 2.5, 2.5)
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap_mean(np.zeros(0), seed=0)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)


def test_one_row_has_no_width() -> None:
    for found in (
        bootstrap_mean(np.array([0.3]), seed=4),
        bootstrap_ratio(np.array([3.0]), np.array([10]), seed=4),
        bootstrap_macro(np.array([0.3, 0.3]), np.array(["a", "b"]), seed=4),
    ):
        assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))
    assert bootstrap_ratio(np.zeros(1), np.zeros(1), seed=4).high == 0


def test_the_bounds_are_percentiles_of_rows_drawn_with_their_weights() -> None:
    sums, weights = RNG.normal(5, 2, 40), RNG.integers(0, 30, 40)
    found = bootstrap_ratio(sums, weights, seed=9)
    drawn = np.random.default_rng(9).integers(40, size=(10_000, 40))
    ratios = sums[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_the_ratio_weighs_rows_by_their_tokens() -> None:
    found = bootstrap_ratio(np.array([10.0, 1.0]), np.array([10, 2]), seed=0)
    assert found.value == pytest.approx(11 / 12)
    # Two rows drawn: both the one, both the other, or one of each.
    assert (found.low, found.high) == (0.5, 1.0)


def test_the_macro_mean_counts_every_group_once() -> None:
    values = np.array([1.0, 1.0, 1.0, 0.0])
    found = bootstrap_macro(values, np.array(["a", "a", "a", "b"]), seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_pairing_sees_a_difference_that_two_intervals_hide() -> None:
    rows = RNG.normal(0, 5, 200)
    a, b = rows + 0.3 + RNG.normal(0, 0.5, 200), rows
    found = paired_bootstrap(a, b, seed=0)
    assert found.value == pytest.approx((a - b).mean())
    assert 0 < found.low < 0.3 < found.high
    assert bootstrap_mean(a, 0).low < bootstrap_mean(b, 0).high
    swapped = paired_bootstrap(b, a, seed=0)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(ValueError, match="not paired"):
        paired_bootstrap(a, b[1:], seed=0)


def test_paired_losses_are_weighted_by_tokens() -> None:
    tokens = np.array([1, 9])
    found = paired_bootstrap(np.array([3.0, 9.0]), np.array([1.0, 9.0]), 0, tokens)
    assert found.value == pytest.approx(0.2)
