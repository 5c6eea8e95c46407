"""Other projects' SAEs: each loaded SAE equals its own project's convention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mona.errors import RequestError, WorkError
from mona.sae import SparseAutoencoder
from mona.sae_formats import load_pretrained
from mona.spec import PretrainedSae

D, LATENTS, K = 16, 48, 6
SAE_LENS = PretrainedSae(path="unused", format="sae_lens")
ELEUTHER = PretrainedSae(path="unused", format="eleuther")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATES = 3 * normal(60, D, seed=99)


def latents_of(sae: SparseAutoencoder, states: torch.Tensor) -> torch.Tensor:
    active = sae.active(states)
    z = torch.zeros(len(states), sae.latents)
    z[active.tokens, active.latents] = active.values
    return z


def sae_lens_sae(architecture: str, **fields: Any) -> Any:
    """A small SAE of sae-lens' own class, every parameter random."""
    from sae_lens import SAE

    kind = {"k": K} if architecture == "topk" else {}
    loaded = SAE.from_dict(
        {"architecture": architecture, "d_in": D, "d_sae": LATENTS, **kind, **fields}
    )
    for seed, (name, parameter) in enumerate(sorted(loaded.named_parameters())):
        value = normal(*parameter.shape, seed=seed) / D**0.5
        parameter.data.copy_(value.abs() if name == "threshold" else value)
    return loaded


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("standard", {}),
        ("topk", {"rescale_acts_by_decoder_norm": False}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {}),
        ("gated", {}),
    ],
)
def test_a_sae_lens_folder_keeps_its_conventions(
    architecture: str,
    fields: dict[str, Any],
    apply_b_dec_to_input: bool,
    norm: str,
    tmp_path: Path,
) -> None:
    theirs = sae_lens_sae(
        architecture,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations=norm,
        **fields,
    )
    theirs.save_model(tmp_path)
    ours = load_pretrained(SAE_LENS, tmp_path)
    with torch.no_grad():
        z = theirs.encode(STATES)
        rebuilt = theirs.decode(z)
    assert 0 < int((z > 0).sum()) < z.numel()
    torch.testing.assert_close(latents_of(ours, STATES), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.reconstruct(STATES), rebuilt, rtol=1e-3, atol=1e-3)


def test_a_sae_lens_subfolder_is_entered(tmp_path: Path) -> None:
    sae_lens_sae("topk").save_model(tmp_path / "blocks.3")
    spec = PretrainedSae(path="unused", subfolder="blocks.3")
    assert load_pretrained(spec, tmp_path).k == K


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    sae_lens_sae("topk", dtype="bfloat16").save_model(tmp_path)
    assert load_pretrained(SAE_LENS, tmp_path).w_enc.dtype == torch.float32


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normalize_activations", "expected_average_only_in"),
        ("normalize_activations", "covariance_whitening"),
        ("reshape_activations", "hook_z"),
        ("architecture", "abstopk"),
    ],
)
def test_conventions_that_cannot_be_honoured_are_refused(
    field: str, value: str, tmp_path: Path
) -> None:
    sae_lens_sae("topk").save_model(tmp_path)
    edit(tmp_path / "cfg.json", **{field: value})
    with pytest.raises(RequestError, match=value if field == "architecture" else field) as raised:
        load_pretrained(SAE_LENS, tmp_path)
    assert "\n" not in str(raised.value)


def test_finetuning_scaling_is_refused(tmp_path: Path) -> None:
    sae_lens_sae("standard").save_model(tmp_path)
    edit(tmp_path / "cfg.json", finetuning_scaling_factor=True)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(
        {**weights, "scaling_factor": torch.full((LATENTS,), 2.0)},
        tmp_path / "sae_weights.safetensors",
    )
    with pytest.raises(RequestError, match="scaling_factor"):
        load_pretrained(SAE_LENS, tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_sae_lens_file_is_named(name: str, tmp_path: Path) -> None:
    sae_lens_sae("topk").save_model(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RequestError, match=rf"{name} is missing"):
        load_pretrained(SAE_LENS, tmp_path)


def test_damaged_sae_lens_weights_are_named(tmp_path: Path) -> None:
    sae_lens_sae("topk").save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)
    without = {name: tensor for name, tensor in weights.items() if name != "W_dec"}
    save_file(without, path)
    with pytest.raises(RequestError, match="W_dec"):
        load_pretrained(SAE_LENS, tmp_path)
    save_file({**weights, "W_enc": weights["W_enc"][:, :-1].contiguous()}, path)
    with pytest.raises(RequestError, match="W_enc"):
        load_pretrained(SAE_LENS, tmp_path)
    save_file({**weights, "b_enc": torch.full((LATENTS,), float("nan"))}, path)
    with pytest.raises(WorkError, match="b_enc"):
        load_pretrained(SAE_LENS, tmp_path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(RequestError, match="cannot be read"):
        load_pretrained(SAE_LENS, tmp_path)


def test_an_unknown_release_is_named() -> None:
    spec = PretrainedSae(release="no-such-release", sae_id="blocks.0")
    with pytest.raises(RequestError, match="no-such-release"):
        load_pretrained(spec, None)


# --- EleutherAI


def eleuther_weights() -> dict[str, torch.Tensor]:
    return {
        "encoder.weight": normal(LATENTS, D, seed=1) / D**0.5,
        "encoder.bias": 0.1 * normal(LATENTS, seed=2),
        "W_dec": normal(LATENTS, D, seed=3) / D**0.5,
        "b_dec": normal(D, seed=4),
    }


def eleuther_folder(folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    weights = eleuther_weights()
    save_file(weights, folder / "sae.safetensors")
    plain = {
        "expansion_factor": LATENTS // D,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "d_in": D,
    }
    (folder / "cfg.json").write_text(json.dumps({**plain, **config}))
    return weights


@pytest.mark.parametrize("config", [{}, {"num_latents": LATENTS, "expansion_factor": 32}])
def test_an_eleuther_folder_follows_its_formula(config: dict[str, Any], tmp_path: Path) -> None:
    w = {name: t.double().numpy() for name, t in eleuther_folder(tmp_path, **config).items()}
    ours = load_pretrained(ELEUTHER, tmp_path)
    x = STATES.double().numpy()
    z = np.maximum((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0)
    for row in z:
        row[np.argsort(-row)[K:]] = 0
    np.testing.assert_allclose(latents_of(ours, STATES).numpy(), z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        ours.reconstruct(STATES).numpy(), z @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4
    )
    assert (ours.k, ours.d, ours.latents) == (K, D, LATENTS)


def test_an_eleuther_subfolder_is_entered(tmp_path: Path) -> None:
    eleuther_folder(tmp_path / "layers.7")
    spec = PretrainedSae(path="unused", subfolder="layers.7", format="eleuther")
    assert load_pretrained(spec, tmp_path).k == K


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, "activation = 'groupmax'"),
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"k": None}, "whole numbers k and d_in"),
        ({"expansion_factor": 0}, "neither num_latents nor expansion_factor"),
        ({"d_in": D + 1}, "encoder.weight has shape"),
        ({"k": LATENTS + 1}, "outside"),
    ],
)
def test_an_eleuther_config_that_does_not_fit_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    eleuther_folder(tmp_path, **config)
    with pytest.raises(RequestError, match=message) as raised:
        load_pretrained(ELEUTHER, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_a_missing_eleuther_file_is_named(name: str, tmp_path: Path) -> None:
    eleuther_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RequestError, match=rf"{name} is missing"):
        load_pretrained(ELEUTHER, tmp_path)


def test_damaged_eleuther_files_are_named(tmp_path: Path) -> None:
    weights = eleuther_folder(tmp_path)
    path = tmp_path / "sae.safetensors"
    save_file({name: t for name, t in weights.items() if name != "encoder.bias"}, path)
    with pytest.raises(RequestError, match="no tensor encoder.bias"):
        load_pretrained(ELEUTHER, tmp_path)
    save_file({**weights, "W_dec": weights["W_dec"] * float("nan")}, path)
    with pytest.raises(WorkError, match="W_dec"):
        load_pretrained(ELEUTHER, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(RequestError, match="sae.safetensors is damaged"):
        load_pretrained(ELEUTHER, tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(RequestError, match="cfg.json is no JSON"):
        load_pretrained(ELEUTHER, tmp_path)
