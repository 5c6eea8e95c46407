"""How well an SAE explains a residual stream: unexplained variance, sparsity, dead latents, and
the layer it seems to belong to. Judgement of these figures (thresholds, warnings) is not here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mona.errors import WorkError
from mona.sae import SparseAutoencoder


@dataclass(frozen=True)
class Quality:
    """fvu: sum |x - x_hat|^2 / sum |x - mean x|^2 over the tokens (0 perfect; 1 no better than
    the mean). l0: mean active latents a token. dead_share: share of latents that no token
    activated. tokens: how many tokens were measured."""

    fvu: float
    l0: float
    dead_share: float
    tokens: int


class _Variance:
    """Squared error against total variance in one pass, in float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self.error = 0.0

    def add(self, states: Tensor, rebuilt: Tensor) -> None:
        states = states.double()
        if self.tokens == 0:
            # Deviations from the first batch's mean: the raw sum of squares would cancel badly
            # against the large constant directions of a residual stream.
            self.origin = states.mean(dim=0)
            self.shift_sum = states.new_zeros(states.shape[1])
            self.square_sum = 0.0
        deviation = states - self.origin
        self.tokens += len(states)
        self.shift_sum += deviation.sum(dim=0)
        self.square_sum += float(deviation.square().sum())
        self.error += float((states - rebuilt.double()).square().sum())

    def unexplained(self) -> float:
        if self.tokens == 0:
            raise WorkError("there are no tokens to measure the SAE on")
        total = self.square_sum - float(self.shift_sum.square().sum()) / self.tokens
        if total <= 0:
            raise WorkError("the tokens to measure the SAE on do not vary")
        return self.error / total


def measure(
    sae: SparseAutoencoder, states_batches: Iterable[Tensor], k: int | None = None
) -> Quality:
    """Quality over batches of states [n, d] (any n, any float dtype, any device).

    Raises WorkError where there is no token, or no variance; RequestError on another width.
    """
    variance = _Variance()
    fired = sae.b_enc.new_zeros(sae.latents).bool()
    active_count = 0
    for batch in states_batches:
        for states in batch.to(sae.b_dec.device).split(sae.chunk_tokens):
            active = sae.active(states, k)
            variance.add(states, sae.decode(active, states))
            positive = active.values > 0
            fired[active.latents[positive]] = True
            active_count += int(positive.sum())
    return Quality(
        fvu=variance.unexplained(),
        l0=active_count / variance.tokens,
        dead_share=1.0 - int(fired.sum()) / sae.latents,
        tokens=variance.tokens,
    )


def measure_layers(
    sae: SparseAutoencoder, batches: Iterable[Mapping[int, Tensor]], k: int | None = None
) -> dict[int, float]:
    """Unexplained share of variance by layer, for batches of {layer: states [n, d]}."""
    variances: defaultdict[int, _Variance] = defaultdict(_Variance)
    for batch in batches:
        for layer, states in batch.items():
            for chunk in states.to(sae.b_dec.device).split(sae.chunk_tokens):
                variances[layer].add(chunk, sae.reconstruct(chunk, k))
    return {layer: variances[layer].unexplained() for layer in sorted(variances)}


def likely_layer(fvus: Mapping[int, float]) -> int:
    """The layer the SAE explains best; the lowest of equals."""
    return min(fvus, key=lambda layer: (fvus[layer], layer))
