"""SAEs as others publish them, read into the canonical form of `mona.sae`.

Two formats: sae-lens (a folder or a catalogued release) and EleutherAI's sparsify. Each keeps its
own convention; what can be folded into the weights is. What their files say, and which of it
can be read, is `mona.sae_check`. Downloading a repository is the caller's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.errors import MonaError, RequestError, WorkError, sentence
from mona.hub import hub_answers
from mona.sae import Activation, InputNorm, SparseAutoencoder
from mona.sae_check import (
    ELEUTHER_WEIGHTS,
    centres_stream,
    entered,
    names_its_layer,
    read_form,
    refuse_misfit,
    refuse_other_hook,
    refuse_unscaled,
    sae_faults,
    sae_lens_form,
)
from mona.spec import PretrainedSae

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_pretrained", "sae_faults"]


def load_pretrained(
    spec: PretrainedSae,
    folder: Path | None,
    *,
    layer: int | None = None,
    width: int | None = None,
    layer_norm: bool = True,
) -> SparseAutoencoder:
    """The SAE that `spec` names, on the CPU in float32.

    folder: the local folder of a `path` or `repo` spec (its `subfolder` is entered here); None for
    a sae-lens `release`, which sae-lens resolves and downloads. layer: the index into
    hidden_states that the model is read at, from 1; a file that names its hook is refused
    without it, for codes of another layer look like codes. width: of the model's stream, compared
    where given. layer_norm: whether the model normalises with LayerNorm; only there does
    TransformerLens centre what blocks write (`center_writing_weights`).

    Raises RequestError in one line on a missing file, field or tensor, on a shape that disagrees
    with the configuration, on another hook or layer, and on a convention that cannot be honoured;
    WorkError on NaN weights; PassingError where the hub of a release did not answer.
    """
    if spec.release is not None and spec.sae_id is not None:
        what = f"sae-lens release {spec.release}, {spec.sae_id}"
        loaded, form = _release(spec.release, spec.sae_id, what)
        _refuse_without_layer(form, what, layer)
        refuse_other_hook(form, what, layer)
        refuse_misfit(form, what, width)
        return _from_sae_lens(loaded, form, what, layer_norm)
    if folder is None:
        raise ValueError("a path or repo needs its local folder")
    folder = entered(spec, folder)
    form = read_form(spec, folder, width, layer)
    if spec.format == "eleuther":
        return _eleuther(folder, form)
    _refuse_without_layer(form, str(folder), layer)
    loaded, form = _sae_lens_folder(folder)
    return _from_sae_lens(loaded, form, str(folder), layer_norm)


def _refuse_without_layer(form: dict[str, Any], where: str, layer: int | None) -> None:
    if layer is None and names_its_layer(form):
        raise RequestError(
            f"{where}: the SAE names {form.get('hook_name') or form.get('hook_point')}, and no "
            "layer was given to compare with"
        )


# --- EleutherAI (sparsify): z = topk(relu((x - b_dec) W_enc^T + b_enc), k)


def _eleuther(folder: Path, form: dict[str, Any]) -> SparseAutoencoder:
    from safetensors.torch import load_file

    path = folder / ELEUTHER_WEIGHTS
    stored = load_file(path)
    for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec"):
        _refuse_nan(stored[name], name, path)
    return SparseAutoencoder(
        w_enc=stored["encoder.weight"].float().T.contiguous(),
        b_enc=stored["encoder.bias"].float(),
        w_dec=stored["W_dec"].float(),
        b_dec=stored["b_dec"].float(),
        activation="topk",
        k=form["k"],
        apply_b_dec_to_input=True,
    )


# --- sae-lens

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
}


def _sae_lens() -> Any:
    """The library's SAE class. RequestError where it is not installed."""
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise RequestError(
            "SAEs in sae-lens' format need the optional group 'sae-lens': "
            "pip install 'mona-select[sae-lens]'"
        ) from error
    return SAE


def _release(release: str, sae_id: str, what: str) -> tuple[Any, dict[str, Any]]:
    SAE = _sae_lens()
    from sae_lens.loading.pretrained_sae_loaders import (
        NAMED_PRETRAINED_SAE_LOADERS,
        get_conversion_loader_name,
    )

    def loader(**asked: Any) -> Any:
        return NAMED_PRETRAINED_SAE_LOADERS[get_conversion_loader_name(release)](**asked)

    def load(converter: Callable[..., Any]) -> Any:
        with hub_answers(what):
            return SAE.from_pretrained(release, sae_id, converter=converter)

    return _load_as_said(load, loader, what)


def _sae_lens_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    SAE = _sae_lens()
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    def load(converter: Callable[..., Any]) -> Any:
        return SAE.load_from_disk(folder, dtype="float32", converter=converter)

    return _load_as_said(load, sae_lens_disk_loader, str(folder))


def _load_as_said(
    load: Callable[[Callable[..., Any]], Any], loader: Callable[..., Any], what: str
) -> tuple[Any, dict[str, Any]]:
    """(the SAE of sae-lens, what its file says): sae-lens gets the configuration as
    `sae_lens_form` makes it, and must have kept every field of it that makes codes."""
    form: dict[str, Any] = {}

    def converter(*places: Any, **asked: Any) -> tuple[Any, ...]:
        config, *rest = loader(*places, **asked)
        form.update(sae_lens_form(config, what))
        return dict(form), *rest

    try:
        # sae-lens warns of settings that `centres_stream` judges.
        with warnings.catch_warnings(action="ignore"):
            loaded = load(converter)
    except (MonaError, MemoryError):
        raise
    # Whatever the library raises while it reads a user's file is a fault of that file.
    except Exception as error:
        raise RequestError(f"{what} cannot be read by sae-lens: {sentence(error)}") from error
    _compare(form, loaded.cfg, what)
    return loaded, form


def _compare(form: dict[str, Any], kept: Any, what: str) -> None:
    """RequestError naming the first field that sae-lens reads otherwise than the file has it."""
    read = {
        "architecture": kept.architecture(),
        **{
            field: getattr(kept, field, False)
            for field in (
                "d_in",
                "d_sae",
                "apply_b_dec_to_input",
                "normalize_activations",
                "reshape_activations",
                "rescale_acts_by_decoder_norm",
            )
        },
    }
    if form["architecture"] == "topk":
        read["k"] = getattr(kept, "k", None)
    for field, value in read.items():
        said = form.get(field)
        # sae-lens folds the average norm into the weights of the releases that it knows it of.
        folded = said == "expected_average_only_in" and value == "none"
        if said is not None and said != value and not folded:
            raise RequestError(f"{what}: {field} = {said!r}, but sae-lens reads it as {value!r}")


def _from_sae_lens(
    loaded: Any, form: dict[str, Any], where: str, layer_norm: bool
) -> SparseAutoencoder:
    """The canonical form of an SAE object of sae-lens whose file says `form`."""
    config = loaded.cfg
    architecture = config.architecture()
    norm: InputNorm = config.normalize_activations
    refuse_unscaled({"normalize_activations": norm}, where)
    if centres_stream(form, where) and layer_norm and norm == "none":
        norm = "centre"  # layer_norm takes the mean off by itself
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
