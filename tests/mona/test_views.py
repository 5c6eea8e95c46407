"""Dense views against a float64 reference written sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mona.encoder import TokenStates
from mona.errors import WorkError
from mona.views import VIEWS, dense_views, token_norms

WIDTH, MLP_WIDTH = 7, 300


def _batch(counts: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> TokenStates:
    random = torch.Generator().manual_seed(seed)
    tokens = sum(counts)
    return TokenStates(
        states=(torch.randn(tokens, WIDTH, generator=random) * 50).to(dtype),
        mlp=torch.randn(tokens, MLP_WIDTH, generator=random).to(dtype),
        offsets=np.cumsum([0, *counts]).astype(np.int64),
    )


def _reference(batch: TokenStates, k: int = 192) -> dict[str, np.ndarray]:
    assert batch.mlp is not None
    states, mlp = batch.states.double().numpy(), batch.mlp.double().numpy()
    rows: dict[str, list[np.ndarray]] = {"mean": [], "weighted_mean": [], "mlp_topk": []}
    for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        if a == b:
            rows["mean"].append(np.zeros(states.shape[1]))
            rows["weighted_mean"].append(np.zeros(states.shape[1]))
            rows["mlp_topk"].append(np.zeros(mlp.shape[1]))
            continue
        rows["mean"].append(states[a:b].mean(axis=0))
        weights = np.arange(1, b - a + 1)
        rows["weighted_mean"].append(np.average(states[a:b], axis=0, weights=weights))
        kept = np.zeros((b - a, mlp.shape[1]))
        for t, token in enumerate(np.abs(mlp[a:b])):
            largest = np.argsort(token)[::-1][:k]
            kept[t, largest] = token[largest]
        rows["mlp_topk"].append(kept.mean(axis=0))
    return {name: np.array(made) for name, made in rows.items()}


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_views_match_the_reference(counts: list[int], seed: int, dtype: torch.dtype) -> None:
    # Ties among bfloat16 magnitudes make the K-th activation ambiguous, not its value.
    batch = _batch(counts, seed, dtype)
    got = dense_views(batch, VIEWS)
    expected = _reference(batch)
    for name in ("mean", "weighted_mean"):
        assert got[name].dtype == np.float16
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, atol=2e-3)
    assert got["mlp_topk"].shape == (len(counts), MLP_WIDTH)
    if dtype == torch.float32:
        np.testing.assert_allclose(got["mlp_topk"], expected["mlp_topk"], rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_allclose(
            got["mlp_topk"].astype(np.float64).sum(axis=1),
            expected["mlp_topk"].sum(axis=1),
            rtol=2e-3,
            atol=1e-3,
        )


def test_known_answers() -> None:
    batch = TokenStates(
        states=torch.tensor([[1.0, 0.0], [4.0, 6.0], [10.0, -2.0]]),
        mlp=torch.tensor([[-3.0, 1.0], [5.0, -1.0], [0.0, 2.0]]),
        offsets=np.array([0, 2, 2, 3]),
    )
    got = dense_views(batch, VIEWS)
    assert got["mean"].tolist() == [[2.5, 3.0], [0.0, 0.0], [10.0, -2.0]]
    assert got["weighted_mean"].tolist() == [[3.0, 4.0], [0.0, 0.0], [10.0, -2.0]]
    # Fewer activations than K: all are kept, by magnitude.
    assert got["mlp_topk"].tolist() == [[4.0, 1.0], [0.0, 0.0], [0.0, 2.0]]


def test_a_token_keeps_192_activations() -> None:
    mlp = torch.arange(1.0, 301.0)[None] * torch.tensor([1.0, -1.0]).repeat(150)
    batch = TokenStates(torch.zeros(1, 2), mlp, np.array([0, 1]))
    view = dense_views(batch, VIEWS)["mlp_topk"][0]
    assert np.flatnonzero(view).tolist() == list(range(108, 300))
    assert view[108:].tolist() == list(range(109, 301))


def test_views_do_not_depend_on_the_rows_beside() -> None:
    batch = _batch([5, 0, 9])
    together = dense_views(batch, VIEWS)
    for i, (a, b) in enumerate([(0, 5), (5, 5), (5, 14)]):
        alone = dense_views(
            TokenStates(batch.states[a:b], batch.mlp[a:b], np.array([0, b - a], np.int64)), VIEWS
        )
        for name, view in alone.items():
            np.testing.assert_array_equal(together[name][i], view[0])


@pytest.mark.parametrize("view", ["mean", "mlp_topk"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error(view: str, value: float) -> None:
    batch = _batch([3, 2])
    (batch.states if view == "mean" else batch.mlp)[4, 1] = value
    with pytest.raises(WorkError, match=rf"'{view}'.*not finite"):
        dense_views(batch, VIEWS)


def test_a_value_beyond_float16_is_an_error_and_the_largest_is_not() -> None:
    batch = _batch([1])
    batch.states[:] = 65504.0
    assert dense_views(batch, VIEWS)["mean"].max() == np.float16(65504)
    batch.states[0, 2] = -70000.0
    with pytest.raises(WorkError, match=r"'mean': 70000 does not fit float16"):
        dense_views(batch, VIEWS)


@pytest.mark.parametrize("wanted", [[], ["mean"], ["weighted_mean", "mean"], ["mlp_topk"]])
def test_only_what_is_wanted_is_made_and_equals_what_all_give(wanted: list[str]) -> None:
    batch = _batch([3, 0, 5])
    got, everything = dense_views(batch, wanted), dense_views(batch, VIEWS)
    assert sorted(got) == sorted(wanted)
    for name, view in got.items():
        np.testing.assert_array_equal(view, everything[name])


def test_a_view_that_is_not_wanted_stops_nothing() -> None:
    """Dense means of large models leave float16; only a recipe that reads them may stop."""
    batch = _batch([4])
    batch.states[:] = 3e5
    assert dense_views(batch, ["mlp_topk"])["mlp_topk"].any()
    with pytest.raises(WorkError, match="'weighted_mean'"):
        dense_views(batch, ["weighted_mean"])
    no_mlp = TokenStates(_batch([4]).states, None, batch.offsets)
    assert dense_views(no_mlp, ["mean"])["mean"].any()
    with pytest.raises(ValueError, match="mlp=True"):
        dense_views(no_mlp, ["mlp_topk"])
    with pytest.raises(ValueError, match="no dense view: media"):
        dense_views(batch, ["media"])


def test_no_tokens_and_no_samples() -> None:
    views = dense_views(_batch([0, 0]), VIEWS)
    assert {name: view.shape for name, view in views.items()} == {
        "mean": (2, WIDTH),
        "weighted_mean": (2, WIDTH),
        "mlp_topk": (2, MLP_WIDTH),
    }
    assert not any(view.any() for view in views.values())
    assert dense_views(_batch([]), VIEWS)["mean"].shape == (0, WIDTH)
    assert token_norms(_batch([])).shape == (0,)


def test_norms_are_euclidean() -> None:
    batch = TokenStates(
        torch.tensor([[3.0, 4.0], [-6.0, 8.0]]), torch.zeros(2, 1), np.array([0, 2])
    )
    assert token_norms(batch).tolist() == [5.0, 10.0]
    assert token_norms(batch).dtype == np.float32
