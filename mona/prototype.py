"""The prototype of a target task: the mean of its representative examples.

Belongs here: means over examples, sparse and dense. Choosing and reading the examples is the
targets' business; comparing rows with a prototype is `mona.similarity`.

The paper (arXiv 2503.15573) takes the plain mean; the balanced mean, in which every subtask
weighs the same however many examples it has, is an option. Sums are float64 and
subtasks are added in the order of their names, so the order of examples does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mona.codes import Codes
from mona.errors import WorkError


def mean_prototype(codes: Codes, latents: int) -> np.ndarray:
    """Unweighted mean of S >= 1 sparse rows: float32 [latents].

    Raises WorkError when there are no examples or a row holds a latent beyond `latents`.

    >>> import numpy as np, mona
    >>> from mona.codes import from_rows
    >>> codes = from_rows(np.array([0, 1, 2]), np.array([0, 2]), np.array([1.0, 3.0]))
    >>> mona.mean_prototype(codes, 4).tolist()
    [0.5, 0.0, 1.5, 0.0]
    """
    return _mean(_sparse_total(codes, latents), np.zeros(len(codes), np.intp), 1)


def balanced_prototype(codes: Codes, subtasks: Sequence[str], latents: int) -> np.ndarray:
    """Mean over subtasks of their examples' means: float32 [latents]; `subtasks` names each
    row's. Raises as `mean_prototype`."""
    groups, count = _groups(subtasks, len(codes))
    return _mean(_sparse_total(codes, latents), groups, count)


def mean_dense_prototype(rows: np.ndarray) -> np.ndarray:
    """Unweighted mean of dense rows, float16 or float32 [S, d]: float32 [d].

    Raises WorkError when there are no examples or a value is not finite.
    """
    return _mean(_dense_total(rows), np.zeros(len(rows), np.intp), 1)


def balanced_dense_prototype(rows: np.ndarray, subtasks: Sequence[str]) -> np.ndarray:
    """Mean over subtasks of their examples' means: float32 [d]; `subtasks` names each row's.
    Raises as `mean_dense_prototype`."""
    groups, count = _groups(subtasks, len(rows))
    return _mean(_dense_total(rows), groups, count)


def _groups(subtasks: Sequence[str], rows: int) -> tuple[np.ndarray, int]:
    """The number of each row's subtask, in the order of the names, and how many there are."""
    if len(subtasks) != rows:
        raise ValueError(f"{len(subtasks)} subtasks for {rows} examples")
    names, groups = np.unique(np.array(subtasks, dtype=np.str_), return_inverse=True)
    return groups, len(names)


def _mean(total: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, count: int) -> np.ndarray:
    """The mean of the groups' means; `total` sums the rows that a boolean mask [S] picks."""
    if not len(groups):
        raise WorkError("a prototype needs at least one example and there is none")
    means = [total(groups == group) / (groups == group).sum() for group in range(count)]
    mean = np.sum(means, axis=0) / count
    return mean.astype(np.float32)


def _sparse_total(codes: Codes, latents: int) -> Callable[[np.ndarray], np.ndarray]:
    if len(codes.indices) and int(codes.indices.max()) >= latents:
        raise WorkError(
            f"an example holds latent {int(codes.indices.max())} and the SAE has {latents}"
        )
    lengths = np.diff(codes.indptr)

    def total(chosen: np.ndarray) -> np.ndarray:
        mask = np.repeat(chosen, lengths)
        return np.bincount(
            codes.indices[mask], weights=codes.values[mask].astype(np.float64), minlength=latents
        )

    return total


def _dense_total(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if not np.isfinite(rows).all():
        raise WorkError("an example holds a value that is not finite (NaN or infinity)")
    return lambda chosen: rows[chosen].sum(axis=0, dtype=np.float64)
