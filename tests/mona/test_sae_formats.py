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
from mona.sae_check import sae_faults
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
    with pytest.raises(RequestError, match="sae_weights.safetensors is damaged"):
        load_pretrained(SAE_LENS, tmp_path)


# --- what a file says outside the fields that sae-lens looks at

# As versions before 6 write it: the hook beside the shapes, and much that only training reads.
OLD = {
    "model_name": "own/tiny",
    "hook_name": "blocks.2.hook_resid_post",
    "hook_layer": 2,
    "hook_head_index": None,
    "d_in": D,
    "d_sae": LATENTS,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "context_size": 64,
    "prepend_bos": True,
    "l1_coefficient": 5,
    "noise_scale": 0.0,
}


def weights_of(architecture: str = "standard", dtype: torch.dtype = torch.float32) -> Any:
    d = {
        "W_enc": normal(D, LATENTS, seed=5) / D**0.5,
        "W_dec": normal(LATENTS, D, seed=6) / D**0.5,
        "b_dec": normal(D, seed=7),
    }
    if architecture == "gated":
        d |= {name: 0.1 * normal(LATENTS, seed=8) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        d["b_enc"] = 0.1 * normal(LATENTS, seed=8)
    if architecture == "jumprelu":
        d["threshold"] = 0.3 * normal(LATENTS, seed=9).abs()
    return {name: tensor.to(dtype) for name, tensor in d.items()}


def old_folder(folder: Path, weights: Any = None, **fields: Any) -> dict[str, torch.Tensor]:
    weights = weights_of() if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.clone() for name, t in weights.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(OLD | fields))
    return {name: t.float() for name, t in weights.items()}


def relu(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_fn_str": "topk", "k": K},
        {"activation_fn": "topk", "k": K, "activation_fn_kwargs": None},
        {"activation_fn_str": "topk", "k": K, "activation_fn_kwargs": {}},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "k": K},
        {"architecture": "topk", "k": K},
        {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"sae_lens_version": "6.1.0", "activation_fn": "topk", "k": K},
        {"metadata": {"sae_lens_version": "6.1.0"}, "architecture": "topk", "k": K},
    ],
)
def test_topk_is_topk_wherever_the_file_says_so(fields: dict[str, Any], tmp_path: Path) -> None:
    w = old_folder(tmp_path, **fields)
    assert sae_faults(SAE_LENS, tmp_path, D, 3) == []
    ours = load_pretrained(SAE_LENS, tmp_path, layer=3)
    assert (ours.activation, ours.k) == ("topk", K)
    z = relu(w, STATES)
    kept = torch.zeros_like(z).scatter_(1, z.topk(K).indices, z.topk(K).values)
    torch.testing.assert_close(latents_of(ours, STATES), kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_fn_str": "topk"}, "topk needs k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "topk needs k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": None}, "topk needs k"),
        # sae-lens would take 100.
        ({"sae_lens_version": "6.1.0", "architecture": "topk"}, "topk needs k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [6]}, "is no JSON object"),
        ({"activation_fn_str": "topk", "k": 4, "activation_fn_kwargs": {"k": 6}}, "k = 4, but"),
        ({"activation_fn_str": "topk", "k": 6.5}, "k = 6.5 is no whole number"),
        ({"activation_fn_str": "topk", "k": LATENTS + 1}, "k = 49 is outside 1..48"),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6, "signed": True}},
            "activation_fn_kwargs.signed",
        ),
        ({"k": 6}, "k = 6, but no activation topk"),
        ({"k": 6, "activation_fn_str": "relu"}, "k = 6, but no activation topk"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str = 'tanh-relu'"),
        ({"activation_fn": "linear"}, "activation_fn = 'linear'"),
        ({"activation_fn": ["relu"]}, r"activation_fn = \['relu'\]"),
        ({"activation_fn_kwargs": {"scale": 2}}, "activation_fn_kwargs = {'scale': 2}"),
        (
            {"architecture": "topk", "activation_fn_str": "relu", "k": K},
            "activation_fn_str = 'relu'",
        ),
        ({"architecture": "jumprelu", "activation_fn": "topk", "k": K}, "activation_fn = 'topk'"),
        ({"architecture": "batchtopk", "k": K}, "architecture = 'batchtopk'"),
        ({"architecture": "matryoshka_batchtopk", "k": K}, "architecture = 'matryoshka_batchtopk'"),
        ({"architecture": "temporal"}, "architecture = 'temporal'"),
        ({"architecture": "transcoder", "d_out": D}, "architecture = 'transcoder'"),
        ({"hook_name_out": "blocks.2.hook_mlp_out"}, "a transcoder"),
        ({"d_out": 24}, "a transcoder"),
        (
            {"rescale_acts_by_decoder_norm": True},
            "rescale_acts_by_decoder_norm = True, but sae-lens",
        ),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor = true"),
        ({"normalize_activations": True}, "'expected_average_only_in' needs a scale"),
        ({"normalize_activations": "of_tomorrow"}, "normalize_activations = 'of_tomorrow'"),
        ({"normalize_activations": ["none"]}, "normalize_activations"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input"),
        ({"reshape_activations": "hook_z"}, "reshape_activations = 'hook_z'"),
        ({"hook_name": "blocks.2.hook_mlp_out"}, "blocks.2.hook_mlp_out; this model entry reads"),
        ({"hook_name": "blocks.2.hook_resid_mid"}, "blocks.2.hook_resid_mid; this model"),
        ({"hook_name": "blocks.2.attn.hook_z"}, "blocks.2.attn.hook_z; this model"),
        ({"hook_name": "model.layers.2.mlp"}, "model.layers.2.mlp; this model"),
        ({"hook_name": "hook_embed"}, "hook_embed; this model"),
        ({"hook_head_index": 3}, "hook_head_index = 3"),
        ({"hook_layer": 4}, "hook_name = 'blocks.2.hook_resid_post', but hook_layer = 4"),
        ({"hook_name": "blocks.0.hook_resid_post", "hook_layer": 0}, "set 'layer: 1'"),
        ({"hook_name": "blocks.2.hook_resid_pre"}, r"hidden_states\[2\]; this model entry reads"),
        ({"hook_name": "transformer.h.3", "hook_layer": 3}, "set 'layer: 4'"),
        ({"hook_name": None, "hook_layer": 7}, "hook_layer 7"),
        ({"model_from_pretrained_kwargs": {"n_ctx": 4}}, "model_from_pretrained_kwargs.n_ctx = 4"),
        (
            {"model_from_pretrained_kwargs": {"checkpoint_value": 100}},
            "model_from_pretrained_kwargs.checkpoint_value = 100",
        ),
        ({"model_from_pretrained_kwargs": ["x"]}, "model_from_pretrained_kwargs is no JSON object"),
        ({"d_in": None}, "d_in = None is no whole number"),
        ({"d_sae": 47}, "W_enc has shape"),
        ({"metadata": 3}, "metadata is no JSON object"),
        ({"architecture": "jumprelu"}, "no tensor threshold"),
        ({"architecture": {"a": 1}}, "architecture"),
    ],
)
def test_what_a_file_says_and_cannot_be_honoured_is_refused_by_name(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    old_folder(tmp_path, **fields)
    with pytest.raises(RequestError, match=message) as raised:
        load_pretrained(SAE_LENS, tmp_path, layer=3)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    if "but sae-lens" not in message:  # this one shows only in what sae-lens kept
        assert sae_faults(SAE_LENS, tmp_path, D, 3) == [str(raised.value)]


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ({"hook_name": "blocks.2.hook_resid_post"}, 3),
        ({"hook_name": "blocks.2.hook_resid_pre"}, 2),
        ({"hook_name": None, "hook_point": "blocks.2.hook_resid_pre"}, 2),
        ({"hook_name": "model.layers.2"}, 3),
        ({"hook_name": "model.language_model.layers.2"}, 3),
        ({"hook_name": "transformer.h.2"}, 3),
        ({"hook_name": None}, 2),
        ({"hook_name": None}, 3),
        ({"hook_name": None, "hook_layer": None}, 5),
    ],
)
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_the_right_layers_hook_is_read(
    architecture: str, hook: dict[str, Any], layer: int, tmp_path: Path
) -> None:
    old_folder(tmp_path, weights_of(architecture), architecture=architecture, **hook)
    assert load_pretrained(SAE_LENS, tmp_path, layer=layer).latents == LATENTS
    assert sae_faults(SAE_LENS, tmp_path, D, layer) == []


def test_a_file_that_names_its_layer_is_not_read_without_one(tmp_path: Path) -> None:
    old_folder(tmp_path)
    with pytest.raises(RequestError, match="names blocks.2.hook_resid_post, and no layer"):
        load_pretrained(SAE_LENS, tmp_path)
    assert sae_faults(SAE_LENS, tmp_path, None, None) == []


def test_another_width_and_a_k_past_the_latents_are_faults(tmp_path: Path) -> None:
    old_folder(tmp_path)
    (fault,) = sae_faults(SAE_LENS, tmp_path, 24, 3)
    assert "reads a residual stream of width 16; the model's has width 24" in fault
    (fault,) = sae_faults(SAE_LENS, tmp_path, D, 3, k=LATENTS + 1)
    assert "the model entry's k = 49 is outside 1..48" in fault
    with pytest.raises(RequestError, match="width 16; the model's has width 24"):
        load_pretrained(SAE_LENS, tmp_path, layer=3, width=24)


def test_centred_writing_weights_are_a_centred_stream(tmp_path: Path) -> None:
    """What TransformerLens makes of a model with LayerNorm: every write has mean zero, so the
    stream is the plain one less its mean over the width."""
    w = old_folder(tmp_path, model_from_pretrained_kwargs={"center_writing_weights": True})
    shifted = STATES + 5 * normal(len(STATES), 1, seed=11)
    centred = shifted - shifted.mean(dim=1, keepdim=True)
    ours = load_pretrained(SAE_LENS, tmp_path, layer=3)
    torch.testing.assert_close(latents_of(ours, shifted), relu(w, centred), rtol=1e-4, atol=1e-4)
    rebuilt = relu(w, centred) @ w["W_dec"] + w["b_dec"] + shifted.mean(dim=1, keepdim=True)
    torch.testing.assert_close(ours.reconstruct(shifted), rebuilt, rtol=1e-3, atol=1e-3)
    # It centres nothing in a model with RMSNorm.
    plain = load_pretrained(SAE_LENS, tmp_path, layer=3, layer_norm=False)
    torch.testing.assert_close(latents_of(plain, shifted), relu(w, shifted), rtol=1e-4, atol=1e-4)
    assert plain.digest != ours.digest
    ours.save(tmp_path / "kept")
    assert SparseAutoencoder.load(tmp_path / "kept").digest == ours.digest


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"center_writing_weights": False},
        {"fold_ln": True, "center_unembed": True, "fold_value_biases": True},
        {"n_devices": 4, "dtype": "bfloat16", "torch_dtype": "float16", "revision": None},
    ],
)
def test_settings_that_leave_the_stream_as_it_is_are_read(given: Any, tmp_path: Path) -> None:
    w = old_folder(tmp_path, model_from_pretrained_kwargs=given)
    got = latents_of(load_pretrained(SAE_LENS, tmp_path, layer=3), STATES)
    torch.testing.assert_close(got, relu(w, STATES), rtol=1e-4, atol=1e-4)


def test_centring_before_a_rescaled_norm_is_refused_and_before_layer_norm_is_nothing(
    tmp_path: Path,
) -> None:
    centre = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    old_folder(tmp_path / "a", normalize_activations="constant_norm_rescale", **centre)
    with pytest.raises(RequestError, match="center_writing_weights with"):
        load_pretrained(SAE_LENS, tmp_path / "a", layer=3)
    old_folder(tmp_path / "b", normalize_activations="layer_norm", **centre)
    assert load_pretrained(SAE_LENS, tmp_path / "b", layer=3).input_norm == "layer_norm"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("said", ["float16", "torch.bfloat16", "float32"])
def test_weights_of_any_dtype_are_read_as_float32(
    dtype: torch.dtype, said: str, tmp_path: Path
) -> None:
    w = old_folder(tmp_path, weights_of(dtype=dtype), dtype=said)
    got = load_pretrained(SAE_LENS, tmp_path, layer=3)
    assert got.w_enc.dtype == torch.float32
    torch.testing.assert_close(got.w_enc, w["W_enc"], rtol=0, atol=0)


def test_a_scaling_factor_of_ones_is_nothing(tmp_path: Path) -> None:
    scaled = {**weights_of(), "scaling_factor": torch.ones(LATENTS)}
    w = old_folder(tmp_path, scaled, finetuning_scaling_factor=True)
    got = latents_of(load_pretrained(SAE_LENS, tmp_path, layer=3), STATES)
    torch.testing.assert_close(got, relu(w, STATES), rtol=1e-4, atol=1e-4)


def test_the_format_that_fits_the_files_is_named(tmp_path: Path) -> None:
    old_folder(tmp_path)
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "sae.safetensors")
    with pytest.raises(RequestError, match="say 'format: eleuther'"):
        load_pretrained(SAE_LENS, tmp_path, layer=3)


def test_a_pointer_in_place_of_the_weights_is_named(tmp_path: Path) -> None:
    old_folder(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in sae_faults(SAE_LENS, tmp_path, D, 3)[0]


def test_a_release_is_held_to_what_its_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release's loader gives its configuration as its file has it: the same rules apply."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def from_folder(repo_id: str, folder_name: str, device: str, **asked: Any) -> Any:
        return *loaders.sae_lens_disk_loader(tmp_path, device, asked["cfg_overrides"]), None

    monkeypatch.setitem(loaders.NAMED_PRETRAINED_SAE_LOADERS, "sae_lens", from_folder)
    spec = PretrainedSae(release="own/release", sae_id="blocks.2")
    old_folder(tmp_path, activation_fn_str="topk", k=K)
    assert load_pretrained(spec, None, layer=3, width=D).k == K
    with pytest.raises(RequestError, match="own/release, blocks.2: the SAE names blocks.2"):
        load_pretrained(spec, None, layer=2)
    with pytest.raises(RequestError, match="no layer was given"):
        load_pretrained(spec, None)
    old_folder(tmp_path, activation_fn_str="tanh-relu")
    with pytest.raises(RequestError, match="own/release, blocks.2: activation_fn_str"):
        load_pretrained(spec, None, layer=3)


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
    ("name", "layer", "message"),
    [
        ("layers.7", 7, None),
        ("layers.7", 8, None),
        ("gpt_neox.layers.7", 8, None),
        ("layers.7", 6, r"layers.7: hidden_states\[7\] or \[8\]; this model entry reads"),
        ("layers.7.mlp", 8, "names layers.7.mlp; this model entry reads the residual stream"),
        ("h.7.attn.out", 8, "names h.7.attn.out; this model entry"),
        ("of_my_own", 4, None),
    ],
)
def test_an_eleuther_folder_named_after_another_module_is_refused(
    name: str, layer: int, message: str | None, tmp_path: Path
) -> None:
    eleuther_folder(tmp_path / name)
    spec = PretrainedSae(path="unused", subfolder=name, format="eleuther")
    faults = sae_faults(spec, tmp_path, D, layer)
    if message is None:
        assert faults == []
        assert load_pretrained(spec, tmp_path, layer=layer).k == K
    else:
        with pytest.raises(RequestError, match=message):
            load_pretrained(spec, tmp_path, layer=layer)
        assert len(faults) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, "activation = 'groupmax'"),
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"k": None}, "k = None is no whole number"),
        ({"k": True}, "k = True is no whole number"),
        ({"d_in": "16"}, "d_in = '16' is no whole number"),
        ({"expansion_factor": 2.5}, "expansion_factor = 2.5 is no whole number"),
        ({"signed": True}, "signed = True"),
        ({"a_field_of_tomorrow": "x"}, "a_field_of_tomorrow = 'x'"),
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
