"""mona.controls: a draw that depends on nothing but seed and id."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mona.controls import draw_scores

IDS = [hashlib.md5(str(i).encode()).hexdigest() for i in range(4_000)]


def test_scores_are_uniform_and_exact_in_float32() -> None:
    scores = draw_scores(IDS, seed=0)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() < 1
    # Kolmogorov-Smirnov distance of 4,000 uniform draws: 1.63 / sqrt(n) at one in a hundred.
    distance = np.abs(np.sort(scores) - np.arange(len(IDS)) / len(IDS)).max()
    assert distance < 1.63 / np.sqrt(len(IDS))
    assert (scores * 2**24 == np.round(scores * 2**24)).all()


def test_a_known_draw() -> None:
    first = hashlib.sha256(b"7:abc").hexdigest()[:6]
    assert draw_scores(["abc"], seed=7)[0] == np.float32(int(first, 16) / 2**24)


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_order_nor_company_matters(seed: int) -> None:
    whole = dict(zip(IDS, draw_scores(IDS, seed), strict=True))
    part = IDS[100:50:-1]
    assert draw_scores(part, seed).tolist() == [whole[sample_id] for sample_id in part]


def test_seeds_draw_apart() -> None:
    both = np.corrcoef(draw_scores(IDS, 0), draw_scores(IDS, 1))[0, 1]
    assert abs(both) < 0.05
