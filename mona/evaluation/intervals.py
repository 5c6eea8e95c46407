"""95 % intervals of what is measured on a sample of rows: of a proportion, of a mean, of the
difference between two models on the same rows. scipy does the arithmetic; it is imported where
an interval is made, for it takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
_BLOCK = 1_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """A proportion with its Wilson score interval (Wilson 1927, doi 10.2307/2276774).

    Raises ValueError for no trials.
    """
    if n < 1:
        raise ValueError("a proportion needs at least one trial")
    from scipy.stats import binomtest

    bounds = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def bootstrap_ratio(sums: np.ndarray, weights: np.ndarray, seed: int) -> Interval:
    """sum(sums) / sum(weights), rows resampled: percentile bootstrap (Efron 1979).

    sums, weights: [n], weights >= 0. A mean of rows is the case of weights 1, a loss a token
    that of summed losses and token counts. Raises ValueError for no rows.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    return _percentiles(float(_ratio(sums, weights)), _resampled(_ratio, seed, sums, weights))


def bootstrap_mean(values: np.ndarray, seed: int) -> Interval:
    """The mean of `values`, [n], with its percentile bootstrap interval."""
    values = np.asarray(values, np.float64)
    return bootstrap_ratio(values, np.ones_like(values), seed)


def bootstrap_macro(values: np.ndarray, groups: np.ndarray, seed: int) -> Interval:
    """The unweighted mean of the groups' means, rows resampled within their groups.

    values: [n]; groups: [n], any labels.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    labels = np.unique(groups)
    means = np.zeros(RESAMPLES)
    for place, label in enumerate(labels):
        own = values[groups == label]
        means += _resampled(np.mean, seed + place, own)
    value = np.mean([values[groups == label].mean() for label in labels])
    return _percentiles(float(value), means / len(labels))


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, seed: int, weights: np.ndarray | None = None
) -> Interval:
    """mean(a) - mean(b) over the same rows, which are resampled together.

    a, b: [n], of the same rows in the same order. With `weights`, [n], `a` and `b` are sums
    (losses of a row's tokens) and the means are sum(a) / sum(weights), sum(b) / sum(weights).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"rows of {a.shape} and of {b.shape} are not paired")
    return bootstrap_ratio(a - b, np.ones_like(a) if weights is None else weights, seed)


def _resampled(statistic: Callable[..., Any], seed: int, *columns: np.ndarray) -> np.ndarray:
    """A statistic of columns [n] over n rows drawn with replacement, the columns' together:
    [RESAMPLES]. The statistic takes `axis`. Raises ValueError for no rows."""
    n = len(columns[0])
    if n == 0:
        raise ValueError("an interval needs at least one row")
    if n == 1:  # there is one draw, and scipy refuses to make it
        return np.full(RESAMPLES, statistic(*columns, axis=0))
    from scipy.stats import bootstrap

    made = bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _BLOCK // n),
        vectorized=True,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return made.bootstrap_distribution


def _ratio(sums: np.ndarray, weights: np.ndarray, axis: int = 0) -> np.ndarray:
    total, weight = sums.sum(axis), weights.sum(axis)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _percentiles(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))
