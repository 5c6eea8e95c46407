"""What an SAE's files say of it, and whether it can be read so, before its weights are loaded.

`mona check` asks before any work and `mona.sae_formats` asks again before it loads. Nothing
heavy is imported: a configuration is JSON, and names and shapes stand in the weights' head.
Making codes is `mona.sae`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mona.errors import RequestError, sentence
from mona.model_check import tensor_shapes
from mona.spec import PretrainedSae

CONFIG_FILE = "cfg.json"
ELEUTHER_WEIGHTS = "sae.safetensors"
SAE_LENS_WEIGHTS = "sae_weights.safetensors"

# What sae-lens calls an architecture, and the names its files give that one's activation.
_ACTIVATIONS = {
    "standard": {"relu"},
    "topk": {"topk"},
    "jumprelu": {"relu", "jumprelu"},
    "gated": {"relu"},
}
_NORMS = ("none", "constant_norm_rescale", "layer_norm")
# Needs a statistic that the weights files do not hold; sae-lens knows it for some releases.
_AVERAGE = "expected_average_only_in"
# Settings of TransformerLens that leave the residual stream as it is, or say where and how the
# model was loaded. Folding, and centring the unembedding, change what reads the stream only.
_SAME_STREAM = {
    "attn_implementation",
    "cache_dir",
    "center_unembed",
    "default_padding_side",
    "default_prepend_bos",
    "device",
    "device_map",
    "dtype",
    "fold_ln",
    "fold_value_biases",
    "local_files_only",
    "move_to_device",
    "n_devices",
    "refactor_factored_attn_matrices",
    "token",
    "torch_dtype",
    "trust_remote_code",
}
_CENTRED = "center_writing_weights"
# Fields of sparsify that make no other codes; `normalize_decoder` and `multi_topk` are training's.
_ELEUTHER_FIELDS = {
    "activation",
    "d_in",
    "expansion_factor",
    "k",
    "multi_topk",
    "normalize_decoder",
    "num_latents",
}


def sae_faults(
    spec: PretrainedSae,
    folder: Path | None,
    width: int | None,
    layer: int | None,
    k: int | None = None,
) -> list[str]:
    """Every fault of an SAE's folder that shows before its weights are loaded, a line each.

    folder: as `mona.sae_formats.load_pretrained` takes it; None (a sae-lens release, which only
    its download shows) has no faults. width: of the model's residual stream. layer: the index
    into hidden_states that the model is read at, from 1 (`absolute_layer`). What is None, and a
    negative layer, is not compared. k: the model entry's.
    """
    if folder is None:
        return []
    try:
        read_form(spec, entered(spec, folder), width, layer, k)
    except RequestError as error:
        return [str(error)]
    return []


def entered(spec: PretrainedSae, folder: Path) -> Path:
    """The folder that holds the SAE itself. RequestError where there is none."""
    found = folder / spec.subfolder if spec.subfolder is not None else folder
    if not found.is_dir():
        raise RequestError(f"{found}: no such folder")
    return found


def read_form(
    spec: PretrainedSae,
    folder: Path,
    width: int | None,
    layer: int | None,
    k: int | None = None,
) -> dict[str, Any]:
    """The configuration in `folder`, with its defaults and spellings made one (see
    `sae_lens_form`, `eleuther_form`), after the weights' head was found to agree with it.

    Raises RequestError on the first fault; arguments as for `sae_faults`.
    """
    config = _read_config(folder)
    where = folder / CONFIG_FILE
    if spec.format == "eleuther":
        form = eleuther_form(config, where)
        _refuse_other_hook_of_folder(spec.subfolder or folder.name, layer)
        _compare_shapes(folder / ELEUTHER_WEIGHTS, _eleuther_shapes(form))
    else:
        form = sae_lens_form(config, where)
        refuse_other_hook(form, where, layer)
        refuse_unscaled(form, where)
        centres_stream(form, where)
        path = folder / SAE_LENS_WEIGHTS
        if not path.exists() and (folder / ELEUTHER_WEIGHTS).exists():
            raise RequestError(
                f"{path} is missing; {ELEUTHER_WEIGHTS} is there: say 'format: eleuther'"
            )
        shapes = _compare_shapes(path, _sae_lens_shapes(form))
        if form.get("finetuning_scaling_factor") and "scaling_factor" not in shapes:
            raise RequestError(
                f"{where}: finetuning_scaling_factor = true, but {path} has no tensor "
                "scaling_factor"
            )
    refuse_misfit(form, where, width, k)
    return form


def refuse_misfit(
    form: dict[str, Any], where: Path | str, width: int | None, k: int | None = None
) -> None:
    """RequestError where the SAE reads another width than the model's, or where its own k or
    the model entry's is more than its latents."""
    if width is not None and form["d_in"] != width:
        raise RequestError(
            f"{where}: the SAE reads a residual stream of width {form['d_in']}; the model's has "
            f"width {width}"
        )
    for said, value in (("k", form.get("k")), ("the model entry's k", k)):
        if value is not None and value > form["d_sae"]:
            raise RequestError(
                f"{where}: {said} = {value} is outside 1..{form['d_sae']}, the SAE's latents"
            )


# --- sae-lens


def sae_lens_form(config: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """A configuration of sae-lens, of any version, so that sae-lens reads what it says.

    What a file says outside the field that sae-lens looks at is put there: `activation_fn_str:
    topk` is the architecture topk, with the k of `k` or of `activation_fn_kwargs`. Metadata lie
    beside the other fields, and a null is absence. RequestError, naming the field, on what can't
    be read so.
    """
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise RequestError(f"{where}: metadata is no JSON object")
    form = {name: v for name, v in {**metadata, **config}.items() if v is not None}
    architecture = form.get("architecture") or "standard"
    name = "activation_fn" if form.get("activation_fn") is not None else "activation_fn_str"
    activation = form.get(name)
    if activation == "topk" and architecture == "standard":
        architecture = "topk"
    if not isinstance(architecture, str) or architecture not in _ACTIVATIONS:
        raise RequestError(f"{where}: architecture = {architecture!r} is not supported")
    if activation is not None and activation not in list(_ACTIVATIONS[architecture]):
        raise RequestError(
            f"{where}: {name} = {activation!r} is not supported "
            f"(with architecture = {architecture!r})"
        )
    form["architecture"] = architecture
    _settle_k(form, where)
    for field in ("d_in", "d_sae"):
        form[field] = _whole(form.get(field), field, where)
    if form.get("d_out") not in (None, form["d_in"]) or form.get("hook_name_out"):
        raise RequestError(f"{where}: a transcoder (d_out, hook_name_out) is not supported")
    norm = form.get("normalize_activations")
    if norm is None or norm is False:
        norm = "none"
    elif norm is True:  # as the first versions wrote it
        norm = _AVERAGE
    if norm not in (*_NORMS, _AVERAGE):
        raise RequestError(f"{where}: normalize_activations = {norm!r} is not supported")
    form["normalize_activations"] = norm
    if form.get("apply_b_dec_to_input") not in (None, True, False):
        raise RequestError(f"{where}: apply_b_dec_to_input is neither true nor false")
    return form


def _settle_k(form: dict[str, Any], where: Path | str) -> None:
    given = form.pop("activation_fn_kwargs", None)
    settings = {} if given is None else given
    if not isinstance(settings, dict):
        raise RequestError(f"{where}: activation_fn_kwargs = {given!r} is no JSON object")
    if form["architecture"] != "topk":
        if settings:
            raise RequestError(f"{where}: activation_fn_kwargs = {settings!r} is not supported")
        if form["architecture"] == "standard" and "k" in form:
            raise RequestError(f"{where}: k = {form['k']!r}, but no activation topk")
        return
    other = sorted(set(settings) - {"k"})
    if other:
        raise RequestError(f"{where}: activation_fn_kwargs.{other[0]} is not supported")
    beside, inside = form.get("k"), settings.get("k")
    if beside is None and inside is None:
        raise RequestError(f"{where}: the activation topk needs k, which the file does not give")
    if None not in (beside, inside) and beside != inside:
        raise RequestError(f"{where}: k = {beside!r}, but activation_fn_kwargs.k = {inside!r}")
    form["k"] = _whole(inside if beside is None else beside, "k", where)
    form["activation_fn_kwargs"] = {"k": form["k"]}  # where older versions have it


def refuse_unscaled(form: dict[str, Any], where: Path | str) -> None:
    """RequestError on a normalisation by a statistic of training that was not stored."""
    if form["normalize_activations"] not in _NORMS:
        raise RequestError(
            f"{where}: normalize_activations = '{form['normalize_activations']}' needs a scale "
            "that is not in its files"
        )


def centres_stream(form: dict[str, Any], where: Path | str) -> bool:
    """Whether the SAE reads the stream with its mean over the width taken off, which is what
    TransformerLens' center_writing_weights makes of a model with LayerNorm.

    RequestError, by name, on other settings that gave its training another stream.
    """
    given = form.get("model_from_pretrained_kwargs") or {}
    if not isinstance(given, dict):
        raise RequestError(f"{where}: model_from_pretrained_kwargs is no JSON object")
    for name, value in given.items():
        if name != _CENTRED and name not in _SAME_STREAM and value not in (None, False):
            raise RequestError(
                f"{where}: model_from_pretrained_kwargs.{name} = {value!r} is not supported: "
                "the SAE was trained on another stream than the model's"
            )
    centred = given.get(_CENTRED) or False
    if centred and form["normalize_activations"] == "constant_norm_rescale":
        raise RequestError(
            f"{where}: {_CENTRED} with normalize_activations = 'constant_norm_rescale' is not "
            "supported"
        )
    return bool(centred)


def refuse_other_hook(form: dict[str, Any], where: Path | str, layer: int | None) -> None:
    """RequestError unless the hook that the file names is the residual stream, and at `layer`
    where that is given and positive; a file that names none is taken at its word."""
    hook = form.get("hook_name") or form.get("hook_point")
    head = form.get("hook_head_index", form.get("hook_point_head_index"))
    if form.get("reshape_activations") not in (None, "none"):
        raise RequestError(
            f"{where}: reshape_activations = '{form['reshape_activations']}' is not supported "
            "(the SAE does not read the residual stream)"
        )
    if head is not None:
        raise RequestError(f"{where}: the SAE reads one attention head (hook_head_index = {head})")
    stated = form.get("hook_layer", form.get("hook_point_layer"))
    if hook is None:
        reads = {stated, stated + 1} if isinstance(stated, int) else set()
    else:
        block, index = _stream_index(str(hook), where)
        if isinstance(stated, int) and stated != block:
            raise RequestError(f"{where}: hook_name = '{hook}', but hook_layer = {stated}")
        reads = {index}
    if reads and layer is not None and layer > 0 and layer not in reads:
        raise RequestError(
            f"{where}: the SAE names {hook or f'hook_layer {stated}'}, which is "
            f"hidden_states[{max(reads)}]; this model entry reads hidden_states[{layer}]: "
            f"set 'layer: {max(reads)}'"
        )


def names_its_layer(form: dict[str, Any]) -> bool:
    """Whether the file says which layer's stream the SAE reads."""
    return any(form.get(name) is not None for name in ("hook_name", "hook_point", "hook_layer"))


def _stream_index(hook: str, where: Path | str) -> tuple[int, int]:
    """(block, index into hidden_states) of a hook of TransformerLens, or of a module's name as
    transformers has it, whose output it then is."""
    lens = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    if lens is not None:
        return int(lens[1]), int(lens[1]) + (lens[2] == "post")
    module = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", hook)
    if module is not None:
        return int(module[1]), int(module[1]) + 1
    raise RequestError(
        f"{where}: the SAE names {hook}; this model entry reads the residual stream after a block"
    )


def _sae_lens_shapes(form: dict[str, Any]) -> dict[str, list[int]]:
    d, latents = form["d_in"], form["d_sae"]
    biases = {
        "gated": ("b_gate", "b_mag", "r_mag"),
        "jumprelu": ("b_enc", "threshold"),
    }.get(form["architecture"], ("b_enc",))
    return {
        "W_enc": [d, latents],
        "W_dec": [latents, d],
        "b_dec": [d],
        **{name: [latents] for name in biases},
    }


# --- EleutherAI (sparsify)


def eleuther_form(config: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """A configuration of sparsify as k, d_in and d_sae. RequestError, naming the field, on one
    that asks for anything but topk of the ReLU of all pre-activations."""
    if config.get("activation", "topk") != "topk":
        raise RequestError(f"{where}: activation = {config['activation']!r} is not supported")
    for field, value in config.items():
        # transcode, skip_connection, signed, and whatever later versions bring.
        if field not in _ELEUTHER_FIELDS and value not in (None, False, 0, ""):
            raise RequestError(f"{where}: {field} = {value!r} is not supported")
    k, d = _whole(config.get("k"), "k", where), _whole(config.get("d_in"), "d_in", where)
    # num_latents is 0 where the width is given by expansion_factor instead.
    if config.get("num_latents"):
        latents = _whole(config["num_latents"], "num_latents", where)
    elif config.get("expansion_factor"):
        latents = d * _whole(config["expansion_factor"], "expansion_factor", where)
    else:
        raise RequestError(f"{where} has neither num_latents nor expansion_factor")
    return {"k": k, "d_in": d, "d_sae": latents}


def _refuse_other_hook_of_folder(name: str, layer: int | None) -> None:
    """sparsify names a folder after the module whose output was read. Whether that is
    hidden_states[N] or [N + 1] differs between its versions: either is taken."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    found = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(\.\w+)*", last)
    if found is None:
        return
    if found[2] is not None:
        raise RequestError(
            f"the SAE's folder names {last}; this model entry reads the residual stream after "
            "a block"
        )
    block = int(found[1])
    if layer is not None and layer > 0 and layer not in (block, block + 1):
        raise RequestError(
            f"the SAE's folder names {last}: hidden_states[{block}] or [{block + 1}]; this "
            f"model entry reads hidden_states[{layer}]"
        )


def _eleuther_shapes(form: dict[str, Any]) -> dict[str, list[int]]:
    d, latents = form["d_in"], form["d_sae"]
    return {
        "encoder.weight": [latents, d],
        "encoder.bias": [latents],
        "W_dec": [latents, d],
        "b_dec": [d],
    }


# --- files


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON: {sentence(error)}") from error
    if not isinstance(config, dict):
        raise RequestError(f"{path} is no JSON object")
    return config


def _compare_shapes(path: Path, expected: dict[str, list[int]]) -> dict[str, list[int]]:
    """The shapes stored in `path`, which hold the expected ones."""
    stored = tensor_shapes(path)
    for name, shape in expected.items():
        if name not in stored:
            raise RequestError(f"{path} has no tensor {name}")
        if stored[name] != shape:
            raise RequestError(
                f"{path}: {name} has shape {stored[name]}, {CONFIG_FILE} says {shape}"
            )
    return stored


def _whole(value: Any, field: str, where: Path | str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(f"{where}: {field} = {value!r} is no whole number above 0")
    return value
