"""SAEs as others publish them, read into the canonical form of `mona.sae`.

Two formats: sae-lens (a folder or a catalogued release) and EleutherAI's sparsify. Each keeps its
own convention; what can be folded into the weights is. Downloading a repository is the caller's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.errors import RequestError, WorkError
from mona.hub import hub_answers
from mona.sae import Activation, SparseAutoencoder
from mona.spec import PretrainedSae

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "cfg.json"
ELEUTHER_WEIGHTS = "sae.safetensors"
SAE_LENS_WEIGHTS = "sae_weights.safetensors"


def load_pretrained(spec: PretrainedSae, folder: Path | None) -> SparseAutoencoder:
    """The SAE that `spec` names, on the CPU in float32.

    folder: the local folder of a `path` or `repo` spec (its `subfolder` is entered here); None for
    a sae-lens `release`, which sae-lens resolves and downloads.

    Raises RequestError in one line on a missing file, field or tensor, on a shape that disagrees
    with the configuration, and on a convention that cannot be honoured; WorkError on NaN weights;
    PassingError where the hub of a release did not answer.
    """
    if spec.release is not None and spec.sae_id is not None:
        return _from_sae_lens(_release(spec.release, spec.sae_id), spec.release)
    if folder is None:
        raise ValueError("a path or repo needs its local folder")
    if spec.subfolder is not None:
        folder = folder / spec.subfolder
    config = _config(folder)
    if spec.format == "eleuther":
        return _eleuther(folder, config)
    return _from_sae_lens(_sae_lens_folder(folder), str(folder))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise RequestError(f"{path} is no JSON object")
    return config


# --- EleutherAI (sparsify): z = topk(relu((x - b_dec) W_enc^T + b_enc), k)


def _eleuther(folder: Path, config: dict[str, Any]) -> SparseAutoencoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = folder / CONFIG_FILE
    for field, plain in (("activation", "topk"), ("transcode", False), ("skip_connection", False)):
        if config.get(field, plain) != plain:
            raise RequestError(f"{where}: {field} = {config[field]!r} is not supported")
    k, d = config.get("k"), config.get("d_in")
    if not isinstance(k, int) or not isinstance(d, int):
        raise RequestError(f"{where} needs the whole numbers k and d_in")
    # num_latents is 0 where the width is given by expansion_factor instead.
    latents = config.get("num_latents") or d * config.get("expansion_factor", 0)
    if not latents:
        raise RequestError(f"{where} has neither num_latents nor expansion_factor")

    path = folder / ELEUTHER_WEIGHTS
    try:
        stored = load_file(path)
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing") from error
    except SafetensorError as error:
        raise RequestError(f"{path} is damaged: {error}") from error
    expected = {
        "encoder.weight": [latents, d],
        "encoder.bias": [latents],
        "W_dec": [latents, d],
        "b_dec": [d],
    }
    for name, shape in expected.items():
        if name not in stored:
            raise RequestError(f"{path} has no tensor {name}")
        if list(stored[name].shape) != shape:
            raise RequestError(
                f"{path}: {name} has shape {list(stored[name].shape)}, {CONFIG_FILE} says {shape}"
            )
        _refuse_nan(stored[name], name, path)
    return SparseAutoencoder(
        w_enc=stored["encoder.weight"].float().T.contiguous(),
        b_enc=stored["encoder.bias"].float(),
        w_dec=stored["W_dec"].float(),
        b_dec=stored["b_dec"].float(),
        activation="topk",
        k=k,
        apply_b_dec_to_input=True,
    )


# --- sae-lens

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
}


def _release(release: str, sae_id: str) -> Any:
    from sae_lens import SAE

    what = f"sae-lens release {release}, {sae_id}"
    try:
        with hub_answers(what):
            return SAE.from_pretrained(release, sae_id)
    except KeyError as error:  # a configuration without a field
        raise RequestError(f"{what}: {_line(error)}") from error


def _sae_lens_folder(folder: Path) -> Any:
    from sae_lens import SAE
    from safetensors import SafetensorError

    if not (folder / SAE_LENS_WEIGHTS).exists():
        raise RequestError(f"{folder / SAE_LENS_WEIGHTS} is missing")
    try:
        return SAE.load_from_disk(folder, dtype="float32")
    # RuntimeError: a missing or misshapen tensor; the others: an unreadable configuration.
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RequestError(f"{folder} cannot be read by sae-lens: {_line(error)}") from error


def _from_sae_lens(loaded: Any, where: str) -> SparseAutoencoder:
    """The canonical form of an SAE object of sae-lens."""
    config = loaded.cfg
    architecture = config.architecture()
    if architecture not in _ACTIVATIONS:
        raise RequestError(f"{where}: architecture = '{architecture}' is not supported")
    # The last two train on statistics that the weights files do not hold.
    norm = config.normalize_activations
    if norm not in ("none", "constant_norm_rescale", "layer_norm"):
        raise RequestError(
            f"{where}: normalize_activations = '{norm}' needs a scale that is not in its files"
        )
    if config.reshape_activations != "none":
        raise RequestError(
            f"{where}: reshape_activations = '{config.reshape_activations}' is not supported "
            "(the SAE does not read the residual stream)"
        )
    tensors: dict[str, Tensor] = {
        name: tensor.detach().float() for name, tensor in loaded.state_dict().items()
    }
    for name, tensor in tensors.items():
        _refuse_nan(tensor, name, where)
    w_enc, w_dec = tensors["W_enc"], tensors["W_dec"]
    threshold = tensors.get("threshold")
    if architecture != "gated":
        b_enc = tensors["b_enc"]
    else:
        # With u = x W_enc the gate is u + b_gate > 0 and the magnitude relu(u e^r + b_mag), so
        # the gate opens where the magnitude's pre-activation exceeds b_mag - b_gate e^r.
        gain = tensors["r_mag"].exp()
        w_enc = w_enc * gain
        b_enc = tensors["b_mag"]
        threshold = tensors["b_mag"] - tensors["b_gate"] * gain
    if getattr(config, "rescale_acts_by_decoder_norm", False):
        norms = w_dec.norm(dim=1)
        w_enc, b_enc = w_enc * norms, b_enc * norms
        w_dec = w_dec / norms.clamp(min=1e-30)[:, None]
    return SparseAutoencoder(
        w_enc=w_enc.contiguous(),
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=tensors["b_dec"],
        activation=_ACTIVATIONS[architecture],
        k=config.k if architecture == "topk" else None,
        threshold=threshold,
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        input_norm=norm,
    )


def _refuse_nan(tensor: Tensor, name: str, where: Path | str) -> None:
    if not bool(tensor.isfinite().all()):
        raise WorkError(f"{where}: tensor {name} holds values that are not finite")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
