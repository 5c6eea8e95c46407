"""95 % intervals of what is measured on a sample of rows: of a proportion, of a mean, of the
difference between two models on the same rows. Arithmetic only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
RESAMPLES = 10_000
_BLOCK = 1_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: int) -> Interval:
    """A proportion with its Wilson score interval (Wilson 1927, doi 10.2307/2276774).

    Raises ValueError for no trials.
    """
    if n < 1:
        raise ValueError("a proportion needs at least one trial")
    share = successes / n
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / scale
    # At 0 and at 1 the bound is exact; rounding must not move it past the value.
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(share, float(low), float(high))


def bootstrap_ratio(sums: np.ndarray, weights: np.ndarray, seed: int) -> Interval:
    """sum(sums) / sum(weights), rows resampled: percentile bootstrap (Efron 1979).

    sums, weights: [n], weights >= 0. A mean of rows is the case of weights 1, a loss a token
    that of summed losses and token counts. Raises ValueError for no rows.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    value = _ratio(sums.sum(), weights.sum())
    drawn = _resampled(np.stack([sums, weights]), seed)
    return _percentiles(float(value), _ratio(drawn[:, 0], drawn[:, 1]))


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
        means += _resampled(own[None], seed + place)[:, 0] / len(own)
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


def _resampled(columns: np.ndarray, seed: int) -> np.ndarray:
    """Sums over n rows drawn with replacement: [RESAMPLES, columns] of `columns` [columns, n]."""
    n = columns.shape[1]
    if n == 0:
        raise ValueError("an interval needs at least one row")
    generator = np.random.default_rng(seed)
    made = []
    step = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(n, size=(min(step, RESAMPLES - start), n))
        made.append(columns[:, drawn].sum(axis=2).T)
    return np.concatenate(made)


def _ratio(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.divide(sums, weights, out=np.zeros_like(sums, np.float64), where=weights > 0)


def _percentiles(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))
