"""Quality figures against known answers: a perfect SAE, the mean, an off-by-one layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mona.errors import RequestError, WorkError
from mona.sae import SparseAutoencoder
from mona.sae_quality import likely_layer, measure, measure_layers


def signed_identity(d: int, k: int) -> SparseAutoencoder:
    """2d latents, one for each sign of each coordinate: exact for any state when k >= d."""
    eye = torch.eye(d)
    return SparseAutoencoder(
        torch.cat([eye, -eye], dim=1), torch.zeros(2 * d), torch.cat([eye, -eye]), torch.zeros(d),
        "topk", k=k,
    )  # fmt: skip


def states_of(tokens: int, d: int, seed: int = 0) -> torch.Tensor:
    return 100 + torch.randn(tokens, d, generator=torch.Generator().manual_seed(seed))


def test_perfect_reconstruction_leaves_nothing_unexplained() -> None:
    quality = measure(signed_identity(6, k=6), [states_of(40, 6)])
    assert quality.fvu < 1e-9
    assert quality.l0 == 6
    assert quality.dead_share == 0.5  # the negative half never fires on states around 100
    assert quality.tokens == 40


def test_the_mean_as_reconstruction_leaves_all() -> None:
    states = states_of(50, 6)
    silent = SparseAutoencoder(
        torch.zeros(6, 3), -torch.ones(3), torch.zeros(3, 6), states.mean(dim=0), "relu"
    )
    quality = measure(silent, [states])
    assert quality.fvu == pytest.approx(1.0, abs=1e-6)
    assert (quality.l0, quality.dead_share) == (0.0, 1.0)


def test_fvu_is_the_formula_whatever_the_batches() -> None:
    states = states_of(60, 8)
    sae = signed_identity(8, k=3)
    x = states.double().numpy()
    rebuilt = np.where(np.argsort(np.argsort(-x, axis=1), axis=1) < 3, x, 0)
    expected = ((x - rebuilt) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    for sizes in ([60], [1, 2, 57], [20, 20, 20]):
        quality = measure(sae, states.split(sizes))
        assert quality.fvu == pytest.approx(expected, rel=1e-9)
        assert quality.l0 == 3
    assert measure(sae, [states], k=8).fvu < 1e-9


def test_an_off_by_one_layer_is_seen() -> None:
    """Three synthetic layers with dictionaries of their own; the SAE is the middle one's."""
    generator = torch.Generator().manual_seed(1)
    bases = [torch.linalg.qr(torch.randn(32, 32, generator=generator))[0][:8] for _ in range(3)]

    def batch() -> dict[int, torch.Tensor]:
        strengths = torch.rand(50, 8, generator=generator)
        return {5 + i: strengths @ basis for i, basis in enumerate(bases)}

    middle = bases[1]
    sae = SparseAutoencoder(middle.T.contiguous(), torch.zeros(8), middle, torch.zeros(32), "relu")
    fvus = measure_layers(sae, [batch(), batch()])
    assert list(fvus) == [5, 6, 7]
    assert fvus[6] < 1e-6
    assert min(fvus[5], fvus[7]) > 0.5
    assert likely_layer(fvus) == 6


def test_the_lowest_of_equally_explained_layers_is_likely() -> None:
    assert likely_layer({7: 0.3, 6: 0.3, 8: 0.4}) == 6


def test_what_cannot_be_measured_is_refused() -> None:
    sae = signed_identity(4, k=2)
    with pytest.raises(WorkError, match="no tokens"):
        measure(sae, [])
    with pytest.raises(WorkError, match="do not vary"):
        measure(sae, [torch.ones(5, 4)])
    with pytest.raises(RequestError, match="width 4"):
        measure(sae, [torch.ones(5, 3)])
