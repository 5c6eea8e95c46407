"""How well an SAE reads a model: measured on tokens it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mona.errors import WorkError
from mona.sae import SparseAutoencoder


@dataclass(frozen=True, slots=True)
class Quality:
    """fvu: fraction of variance unexplained; l0: mean active latents a token; dead_share:
    latents never active on these tokens; tokens: how many were measured."""

    fvu: float
    l0: float
    dead_share: float
    tokens: int


class UnexplainedVariance:
    """sum |x - x_hat|^2 / sum |x - mean|^2 over a stream of tokens, in float64."""

    def __init__(self) -> None:
        self._residual = 0.0
        self._squares = 0.0
        self._sum: Tensor | None = None
        self.tokens = 0

    def add(self, states: Tensor, estimate: Tensor) -> None:
        """Adds tokens [T, width] and what the SAE made of them."""
        wide = states.double()
        total = wide.sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._squares += float(wide.square().sum())
        self._residual += float((wide - estimate.double()).square().sum())
        self.tokens += len(states)

    @property
    def fvu(self) -> float:
        """The fraction. WorkError with fewer than two tokens."""
        if self._sum is None or self.tokens < 2:
            raise WorkError("SAE quality needs at least two counted tokens")
        return self._residual / (self._squares - float(self._sum.square().sum()) / self.tokens)


def measure(sae: SparseAutoencoder, batches: Iterable[Tensor], k: int | None) -> Quality:
    """Quality over batches [T, width] of held-out residual streams."""
    variance = UnexplainedVariance()
    active = 0
    alive = torch.zeros(sae.latents, dtype=torch.bool)
    for raw in batches:
        states = raw.float()
        variance.add(states, sae.reconstruct(states, k))
        values, latents = sae.activations(states, k)
        active += int((values > 0).sum())
        alive[latents[values > 0].cpu()] = True
    fvu = variance.fvu
    return Quality(
        fvu, active / variance.tokens, float((~alive).double().mean()), variance.tokens
    )


def measure_layers(
    sae: SparseAutoencoder, batches: Iterable[Mapping[int, Tensor]], k: int | None
) -> dict[int, float]:
    """{layer: FVU} over batches {layer: residual streams [T, width]} of the same tokens."""
    variances: dict[int, UnexplainedVariance] = {}
    for batch in batches:
        for layer, raw in batch.items():
            states = raw.float()
            variances.setdefault(layer, UnexplainedVariance()).add(
                states, sae.reconstruct(states, k)
            )
    return {layer: variance.fvu for layer, variance in sorted(variances.items())}


def likely_layer(fvus: Mapping[int, float]) -> int:
    """The layer the SAE explains best: where it was probably trained."""
    return min(fvus, key=lambda layer: (fvus[layer], layer))
