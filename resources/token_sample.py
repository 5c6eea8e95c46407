"""The token sample an SAE is trained and measured on: whole samples of one or more pools in
a seeded order, the first of them held out for quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from resources.encodings import Encodings

if TYPE_CHECKING:
    import torch

_CHUNK = 256


@dataclass
class TokenSample:
    """Samples of `encodings` (one a pool) shuffled together by `seed`."""

    encodings: Sequence[Encodings]
    seed: int
    held_out_tokens: int

    @cached_property
    def _order(self) -> np.ndarray:
        """[n, 2] int64: (which pool, position in it), shuffled."""
        pairs = [
            np.column_stack([np.full(len(pool.sample_ids), i), np.arange(len(pool.sample_ids))])
            for i, pool in enumerate(self.encodings)
        ]
        order = np.concatenate(pairs).astype(np.int64)
        return order[np.random.default_rng(self.seed).permutation(len(order))]

    def run_model(self, tokens: int, progress: Callable[[int], None]) -> None:
        """One forward pass over the sample, up to `tokens`, into the token caches that have
        room; afterwards reading it costs no forward pass."""
        seen = 0
        for states in self._states(self._order, cached_only=True):
            seen += len(states)
            progress(1)
            if seen >= tokens + self.held_out_tokens:
                return

    @cached_property
    def held_out(self) -> list[torch.Tensor]:
        """Residual streams [n, d] of the samples set aside, at least `held_out_tokens` tokens
        or a tenth of the samples, whichever comes first."""
        kept: list[torch.Tensor] = []
        tokens = 0
        for states in self._states(self._order[: max(1, len(self._order) // 10)]):
            kept.append(states)
            tokens += len(states)
            if tokens >= self.held_out_tokens:
                break
        return kept

    @property
    def held_out_positions(self) -> np.ndarray:
        """[n, 2]: (which pool, position) of the samples set aside."""
        return self._order[: len(self.held_out)]

    def training(self, tokens: int, epoch: int) -> Iterator[torch.Tensor]:
        """Residual streams of samples that are not held out, until `tokens` have come; each
        epoch has its own order of the same samples where the pool is smaller than that."""
        rest = self._order[len(self.held_out) :]
        if epoch:
            rest = rest[np.random.default_rng([self.seed, epoch]).permutation(len(rest))]
        seen = 0
        for states in self._states(rest):
            yield states
            seen += len(states)
            if seen >= tokens:
                return

    def _states(self, order: np.ndarray, *, cached_only: bool = False) -> Iterator[torch.Tensor]:
        if cached_only:
            roomy = [i for i, pool in enumerate(self.encodings) if pool.caches_tokens]
            order = order[np.isin(order[:, 0], roomy)]
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            streams = {
                int(pool): self.encodings[pool].token_states(chunk[chunk[:, 0] == pool, 1].tolist())
                for pool in np.unique(chunk[:, 0])
            }
            for pool in chunk[:, 0]:
                yield next(streams[int(pool)])[1]
