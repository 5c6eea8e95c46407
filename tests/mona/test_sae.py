"""The canonical SAE: codes against a float64 reference, invariances, files, faults."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mona import sae as sae_module
from mona.codes import Codes
from mona.errors import RequestError, WorkError
from mona.sae import CODE_RTOL, SparseAutoencoder


def random_sae(
    d: int = 24, latents: int = 96, seed: int = 0, activation: str = "topk", **fields: Any
) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if activation == "topk":
        fields.setdefault("k", 8)
    if activation == "jumprelu":
        fields.setdefault("threshold", normal(latents).abs())
    return SparseAutoencoder(
        w_enc=normal(d, latents) / d**0.5,
        b_enc=0.1 * normal(latents),
        w_dec=normal(latents, d) / d**0.5,
        b_dec=normal(d),
        activation=activation,  # type: ignore[arg-type]
        **fields,
    )


def reference_latents(
    sae: SparseAutoencoder, states: torch.Tensor, k: int | None = None
) -> np.ndarray:
    """z [T, d_sae] in float64, straight from the formula."""
    x = states.double().numpy()
    if sae.input_norm == "constant_norm_rescale":
        x = x * np.sqrt(sae.d) / np.linalg.norm(x, axis=1, keepdims=True)
    elif sae.input_norm == "layer_norm":
        x = x - x.mean(axis=1, keepdims=True)
        x = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    if sae.apply_b_dec_to_input:
        x = x - sae.b_dec.double().numpy()
    pre = x @ sae.w_enc.double().numpy() + sae.b_enc.double().numpy()
    z = np.maximum(pre, 0)
    if sae.threshold is not None:
        z[pre <= sae.threshold.double().numpy()] = 0
    cap = k if k is not None else sae.k
    if cap is not None:
        for row in z:
            row[np.argsort(-row, kind="stable")[cap:]] = 0
    return z


def reference_codes(
    sae: SparseAutoencoder,
    states: torch.Tensor,
    offsets: np.ndarray,
    k: int | None = None,
    pooling: str = "mean",
) -> np.ndarray:
    z = reference_latents(sae, states, k)
    rows = np.zeros((len(offsets) - 1, sae.latents))
    for i, (start, end) in enumerate(itertools.pairwise(offsets)):
        if end > start:
            rows[i] = z[start:end].sum(axis=0) / (end - start if pooling == "mean" else 1)
    return rows


def dense(codes: Codes, latents: int) -> np.ndarray:
    rows = np.zeros((len(codes), latents))
    for i in range(len(codes)):
        own = slice(codes.indptr[i], codes.indptr[i + 1])
        rows[i, codes.indices[own]] = codes.values[own]
    return rows


def assert_same_codes(codes: Codes, expected: np.ndarray) -> None:
    assert np.abs(dense(codes, expected.shape[1]) - expected).max(initial=0) <= (
        CODE_RTOL * expected.max(initial=0)
    )
    for i in range(len(codes)):
        row = codes.indices[codes.indptr[i] : codes.indptr[i + 1]].astype(np.int64)
        assert (np.diff(row) > 0).all()


def offsets_of(*lengths: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


LENGTHS = (5, 0, 1, 40, 17, 0)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("input_norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu"])
def test_codes_follow_the_formula(
    activation: str, apply_b_dec_to_input: bool, input_norm: str, pooling: str
) -> None:
    sae = random_sae(
        activation=activation, apply_b_dec_to_input=apply_b_dec_to_input, input_norm=input_norm
    )
    states = 3 * torch.randn(sum(LENGTHS), sae.d, generator=torch.Generator().manual_seed(1))
    offsets = offsets_of(*LENGTHS)
    codes = sae.encode(states, offsets, pooling=pooling)  # type: ignore[arg-type]
    assert_same_codes(codes, reference_codes(sae, states, offsets, pooling=pooling))
    assert codes.indptr[2] - codes.indptr[1] == 0
    assert codes.l1[1] == 0


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu"])
@pytest.mark.parametrize("k", [1, 5, 96])
def test_k_replaces_a_topk_and_caps_another_gate(activation: str, k: int) -> None:
    sae = random_sae(activation=activation)
    states = torch.randn(30, sae.d, generator=torch.Generator().manual_seed(2))
    offsets = offsets_of(30)
    codes = sae.encode(states, offsets, k=k)
    assert_same_codes(codes, reference_codes(sae, states, offsets, k=k))
    one = sae.encode(states[:1], offsets_of(1), k=k)
    assert len(one.indices) <= k


def test_a_residual_stream_with_a_large_constant_direction() -> None:
    """SmolLM2's has one dimension 20 times the others: no cancellation may reach the codes."""
    sae = random_sae(d=64, latents=512, k=16)
    centre = torch.zeros(64)
    centre[3] = 540.0
    shifted = SparseAutoencoder(sae.w_enc, sae.b_enc, sae.w_dec, sae.b_dec + centre, "topk", k=16)
    states = centre + torch.randn(300, 64, generator=torch.Generator().manual_seed(3))
    offsets = offsets_of(100, 200)
    assert_same_codes(shifted.encode(states, offsets), reference_codes(shifted, states, offsets))


def test_identity_dictionary_reads_the_coordinates_back() -> None:
    """Structured data whose codes are known: W = I, so z is the positive part of x."""
    eye = torch.eye(4)
    sae = SparseAutoencoder(eye, torch.zeros(4), eye, torch.zeros(4), "topk", k=2)
    states = torch.tensor([[3.0, 1.0, 2.0, -5.0], [-1.0, 4.0, -2.0, -3.0]])
    codes = sae.encode(states, offsets_of(2))
    np.testing.assert_array_equal(dense(codes, 4), [[1.5, 2.0, 1.0, 0.0]])
    assert codes.l1.tolist() == [4.5]


def test_fewer_positive_than_k_stores_no_zero() -> None:
    eye = torch.eye(6)
    sae = SparseAutoencoder(eye, torch.zeros(6), eye, torch.zeros(6), "topk", k=5)
    states = torch.tensor([[2.0, -1.0, -1.0, -1.0, 1.0, -1.0], [-1.0] * 6])
    codes = sae.encode(states, offsets_of(1, 1))
    assert codes.indices.tolist() == [0, 4]
    assert codes.values.tolist() == [2.0, 1.0]
    assert codes.indptr.tolist() == [0, 2, 2]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=0, max_size=12),
    d=st.integers(1, 12),
    latents=st.integers(1, 40),
    chunk=st.integers(1, 7),
    group=st.integers(1, 4),
    data=st.data(),
)
def test_any_shape_and_chunking_gives_the_reference(
    lengths: list[int], d: int, latents: int, chunk: int, group: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, latents))
    sae = random_sae(d, latents, seed=len(lengths), k=k)
    states = torch.randn(sum(lengths), d, generator=torch.Generator().manual_seed(4))
    offsets = offsets_of(*lengths)
    expected = reference_codes(sae, states, offsets)
    assert_same_codes(sae.encode(states, offsets), expected)
    with pytest.MonkeyPatch.context() as patch:
        # Both bounds follow from the byte budget: chunk tokens, and half as many samples.
        patch.setattr(sae_module, "DENSE_BYTES", max(4 * chunk, 8 * group) * latents)
        chunked = sae.encode(states, offsets)
    assert len(chunked) == len(lengths)
    assert_same_codes(chunked, expected)


def test_the_order_of_a_samples_tokens_does_not_matter() -> None:
    sae = random_sae()
    states = torch.randn(200, sae.d, generator=torch.Generator().manual_seed(5))
    offsets = offsets_of(200)
    turned = sae.encode(states.flip(0), offsets)
    assert_same_codes(turned, dense(sae.encode(states, offsets), sae.latents))


def test_ties_are_broken_the_same_way_each_time() -> None:
    twice = torch.ones(3, 50)
    sae = SparseAutoencoder(twice, torch.zeros(50), twice.T, torch.zeros(3), "topk", k=7)
    states = torch.ones(20, 3)
    first = sae.encode(states, offsets_of(20))
    again = sae.encode(states, offsets_of(20))
    assert len(first.indices) >= 7
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.values, again.values)


def test_half_precision_states_are_read_as_they_are() -> None:
    sae = random_sae()
    states = torch.randn(20, sae.d, generator=torch.Generator().manual_seed(6)).bfloat16()
    offsets = offsets_of(20)
    assert_same_codes(sae.encode(states, offsets), reference_codes(sae, states, offsets))


@pytest.mark.parametrize("input_norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_reconstruction_follows_the_formula(
    activation: str, input_norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = random_sae(activation=activation, input_norm=input_norm)
    states = 5 * torch.randn(50, sae.d, generator=torch.Generator().manual_seed(7))
    x = states.double().numpy()
    expected = reference_latents(sae, states) @ sae.w_dec.double().numpy()
    expected += sae.b_dec.double().numpy()
    if input_norm == "constant_norm_rescale":
        expected *= np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(sae.d)
    elif input_norm == "layer_norm":
        expected = expected * x.std(axis=1, ddof=1, keepdims=True) + x.mean(axis=1, keepdims=True)
    monkeypatch.setattr(sae_module, "DENSE_BYTES", 4 * sae.latents * 7)
    np.testing.assert_allclose(sae.reconstruct(states).numpy(), expected, rtol=1e-4, atol=1e-4)


# --- files


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    sae = random_sae(activation="jumprelu", apply_b_dec_to_input=False, input_norm="layer_norm")
    sae.save(tmp_path / "sae")
    again = SparseAutoencoder.load(tmp_path / "sae")
    for name, tensor in sae.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert (again.activation, again.k, again.apply_b_dec_to_input, again.input_norm) == (
        "jumprelu",
        None,
        False,
        "layer_norm",
    )
    assert again.digest == sae.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_saving_over_an_sae_replaces_it(tmp_path: Path) -> None:
    random_sae(seed=0).save(tmp_path / "sae")
    other = random_sae(seed=1)
    other.save(tmp_path / "sae")
    assert SparseAutoencoder.load(tmp_path / "sae").digest == other.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = random_sae(seed=0)
    old.save(tmp_path / "sae")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        random_sae(seed=1).save(tmp_path / "sae")
    assert SparseAutoencoder.load(tmp_path / "sae").digest == old.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_the_digest_names_weights_and_conventions() -> None:
    sae = random_sae()
    nudged = sae.w_enc.clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(9.0))
    digests = [
        made.digest
        for made in (
            sae,
            random_sae(seed=1),
            random_sae(k=9),
            random_sae(apply_b_dec_to_input=False),
            random_sae(input_norm="layer_norm"),
            SparseAutoencoder(nudged, sae.b_enc, sae.w_dec, sae.b_dec, "topk", k=8),
        )
    ]
    assert len(set(digests)) == len(digests)
    assert random_sae().digest == sae.digest


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    random_sae().save(tmp_path / "sae")
    weights = tmp_path / "sae" / "sae.safetensors"
    stored = bytearray(weights.read_bytes())
    stored[-3] ^= 1
    weights.write_bytes(stored)
    with pytest.raises(WorkError, match=r"sae\.safetensors does not hash to the digest"):
        SparseAutoencoder.load(tmp_path / "sae")


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("sae.json", None, RequestError, "holds no SAE"),
        ("sae.json", b"{", WorkError, "sae.json is damaged"),
        ("sae.json", b"[]", WorkError, "no record of an SAE"),
        ("sae.json", b'{"digest": "x"}', WorkError, "no SAE of this format"),
        ("sae.safetensors", None, RequestError, "has no sae.safetensors"),
        ("sae.safetensors", b"12", WorkError, "sae.safetensors is damaged"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, kind: type[Exception], message: str
) -> None:
    random_sae().save(tmp_path / "sae")
    path = tmp_path / "sae" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(kind, match=message) as raised:
        SparseAutoencoder.load(tmp_path / "sae")
    assert "\n" not in str(raised.value)


def test_the_record_is_readable_json(tmp_path: Path) -> None:
    sae = random_sae()
    sae.save(tmp_path / "sae")
    record = json.loads((tmp_path / "sae" / "sae.json").read_text())
    assert record == {
        "d": 24,
        "latents": 96,
        "k": 8,
        "activation": "topk",
        "conventions": {"apply_b_dec_to_input": True, "input_norm": "none"},
        "digest": sae.digest,
    }


# --- faults


def test_states_of_another_width_are_refused() -> None:
    with pytest.raises(RequestError, match="width 24.*width 25"):
        random_sae().encode(torch.zeros(2, 25), offsets_of(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_refused(bad: float) -> None:
    states = torch.zeros(4, 24)
    states[3, 5] = bad
    with pytest.raises(WorkError, match="residual stream"):
        random_sae().encode(states, offsets_of(4))


def test_a_value_beyond_float16_is_refused() -> None:
    eye = torch.eye(2)
    sae = SparseAutoencoder(eye, torch.zeros(2), eye, torch.zeros(2), "topk", k=1)
    states = torch.full((2, 2), 40_000.0)
    assert sae.encode(states, offsets_of(2)).values.tolist() == [40_000.0]
    with pytest.raises(WorkError, match="does not fit float16"):
        sae.encode(states, offsets_of(2), pooling="sum")


@pytest.mark.parametrize("k", [0, 97])
def test_k_outside_the_latents_is_refused(k: int) -> None:
    with pytest.raises(RequestError, match=rf"k = {k} is outside 1\.\.96"):
        random_sae().encode(torch.zeros(1, 24), offsets_of(1), k=k)


def test_offsets_must_span_the_states() -> None:
    with pytest.raises(ValueError, match=r"0\.\.3, not 0\.\.4"):
        random_sae().encode(torch.zeros(4, 24), offsets_of(3))


def test_a_weight_that_is_not_finite_is_named() -> None:
    sae = random_sae()
    broken = sae.w_dec.clone()
    broken[1, 1] = float("nan")
    with pytest.raises(WorkError, match="w_dec"):
        SparseAutoencoder(sae.w_enc, sae.b_enc, broken, sae.b_dec, "topk", k=8)


def test_tensors_that_do_not_fit_each_other_are_named() -> None:
    sae = random_sae()
    with pytest.raises(RequestError, match=r"w_dec has shape \[24, 96\], expected \[96, 24\]"):
        SparseAutoencoder(sae.w_enc, sae.b_enc, sae.w_dec.T, sae.b_dec, "topk", k=8)
    with pytest.raises(RequestError, match="threshold"):
        SparseAutoencoder(sae.w_enc, sae.b_enc, sae.w_dec, sae.b_dec, "jumprelu")
    with pytest.raises(RequestError, match="needs k"):
        SparseAutoencoder(sae.w_enc, sae.b_enc, sae.w_dec, sae.b_dec, "topk")
