"""The draw behind random subsets, the control every selection is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mona.draw import lot


def draw_scores(sample_ids: Sequence[str], seed: int) -> np.ndarray:
    """A uniform score in [0, 1) for each sample, float32 [n]: SHA-256 of seed and id.

    A sample's score depends on neither the order nor the other samples, so a refreshed pool
    changes a random subset only by the rows that came and went.
    """
    drawn = [int.from_bytes(lot(seed, sample_id)[:3], "big") for sample_id in sample_ids]
    # 24 bits are what a float32 holds exactly; ties rank by id.
    return (np.asarray(drawn, np.float64) / 2**24).astype(np.float32)
