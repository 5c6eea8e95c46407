"""What can be known of a model folder without loading its weights, each fault in one line.

`mona check` asks before any work and the encoder asks again before it loads. Nothing heavy is
imported at the top: files are looked at first, and transformers and torch are brought in only
for a folder whose files are in order. Prepared folders are `mona.checkpoints`; modules are
`mona.architecture`; an SAE's files are `mona.sae_check`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mona.checkpoints import POINTER_FAULT, deciding_files, is_pointer, quiet_transformers
from mona.errors import RequestError, sentence

CONFIG_FILE = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(slots=True)
class Inspection:
    """A model folder as far as it could be read: `faults` is empty where all of it could.

    blocks, width: of the text model, 0 where its configuration could not be read. config,
    tokenizer, skeleton (the model without values), its decoder and list of blocks: None where
    not reached.
    """

    faults: list[str] = field(default_factory=list)
    blocks: int = 0
    width: int = 0
    config: Any = None
    tokenizer: Any = None
    skeleton: Any = None
    decoder: Any = None
    block_list: Any = None


def model_faults(
    folder: Path, *, layer: int, max_length: int, mlp: bool, trust_remote_code: bool
) -> list[str]:
    """Every fault of a model folder that shows before its weights are loaded, a line each.

    layer: index into hidden_states; max_length: tokens of the longest sample; mlp: whether a
    recipe reads `mlp_topk`. Imports torch and transformers unless the files alone show a fault.
    """
    return inspect_model(
        folder, layer=layer, max_length=max_length, mlp=mlp, trust_remote_code=trust_remote_code
    ).faults


def inspect_model(
    folder: Path, *, layer: int, max_length: int, mlp: bool, trust_remote_code: bool
) -> Inspection:
    """What `model_faults` says, with what was read on the way."""
    found = Inspection(file_faults(folder))
    if found.faults:
        return found
    quiet_transformers()
    try:
        found.config = _read_config(folder, trust_remote_code)
        text = found.config.get_text_config()
        found.blocks, found.width = text.num_hidden_layers, text.hidden_size
    except RequestError as error:
        found.faults.append(str(error))
        return found
    checks: tuple[Callable[[], None], ...] = (
        lambda: _quantization(folder, found.config),
        lambda: _skeleton(folder, found, trust_remote_code),
        lambda: _layer(found, layer, folder, mlp),
        lambda: refuse_past_positions(found, folder, max_length),
        lambda: _shapes(folder, found),
        lambda: _vocabulary(folder, found, trust_remote_code),
    )
    for check in checks:
        try:
            check()
        except RequestError as error:
            found.faults.append(str(error))
    return found


def absolute_layer(layer: int, blocks: int) -> int:
    """The number of blocks that produce hidden_states[layer] of a model with `blocks` blocks.

    hidden_states has blocks + 1 entries, the embedding first; -2 is the output of the
    penultimate block. RequestError outside 1..blocks.
    """
    absolute = layer if layer >= 0 else blocks + 1 + layer
    if not 1 <= absolute <= blocks:
        raise RequestError(f"layer {layer} is outside the model: 1 to {blocks}, or {-blocks} to -1")
    return absolute


# --- files


def file_faults(folder: Path) -> list[str]:
    """Faults that a folder's files show by their heads: pointers in place of content, damaged
    or cut weights, shards that are missing. Imports neither torch nor transformers."""
    try:
        files = deciding_files(folder)
    except RequestError as error:
        return [str(error)]
    pointers = [path for path in files if path.is_file() and is_pointer(path)]
    if pointers:
        return [f"{path}: {POINTER_FAULT}" for path in pointers]
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = _weight_files(folder)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        return [f"{folder / CONFIG_FILE} is no JSON: {sentence(error)}"]
    except RequestError as error:
        return [str(error)]
    if not isinstance(config, dict):
        return [f"{folder / CONFIG_FILE} is no JSON object"]
    faults = []
    for path in weights:
        try:
            if not tensor_shapes(path):
                faults.append(f"{path} holds no tensors")
        except RequestError as error:
            faults.append(str(error))
    return faults


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a safetensors file, from its head.

    RequestError where it is missing, a pointer, no safetensors file, or cut.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RequestError(f"{path} is missing")
    if is_pointer(path):
        raise RequestError(f"{path}: {POINTER_FAULT}")
    try:
        with safe_open(path, framework="numpy") as stored:
            names = stored.keys()  # it can't be iterated over itself
            return {name: list(stored.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path} is damaged: {sentence(error)}") from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        raise RequestError(f"{folder}: weights are neither {_WEIGHTS} nor named by {_INDEX}")
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in shards})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"{index} names no weights: {sentence(error)}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RequestError(f"{index} names {missing[0]}, which is missing")
    return [folder / name for name in names]


# --- configuration


def _read_config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    where = folder / CONFIG_FILE
    try:
        config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        text = config.get_text_config()
    except MemoryError:
        raise
    # Whatever a library raises while it reads a user's file is a fault of that file.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise RequestError(
                f"{where}: the model runs code of its own (auto_map); its entry must say "
                "'trust_remote_code: true', if you trust it"
            ) from error
        raise RequestError(f"{where}: {sentence(error)}") from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise RequestError(f"{where}: {kind} is an encoder-decoder; only decoders are read")
    if _attends_both_ways(text):
        raise RequestError(
            f"{where}: {kind} attends to later tokens (an encoder); only causal decoders are read"
        )
    if getattr(text, "num_attention_heads", None) is None:
        raise RequestError(
            f"{where}: {kind} has no attention (a state space or recurrent model); only "
            "transformer decoders are read"
        )
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(text, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"{where}: {name} = {value!r} is no whole number above 0")
    return config


def _attends_both_ways(text: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encoder = text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not text.is_decoder
    both_ways = getattr(text, "use_bidirectional_attention", None) in (True, "all")
    return encoder or both_ways or getattr(text, "is_causal", True) is False


def _quantization(folder: Path, config: Any) -> None:
    """RequestError where this machine can't read the format that the weights are quantised in."""
    if not _quantized(config):
        return
    from transformers.quantizers.auto import get_hf_quantizer

    said = _quantized(config)
    method = said.get("quant_method") if isinstance(said, dict) else None
    try:
        found = get_hf_quantizer(config, None, None, weights_only=True, user_agent={})[0]
    except MemoryError:
        raise
    except Exception as error:  # as in _read_config
        raise RequestError(
            f"{folder / CONFIG_FILE}: weights are quantised ({method}): {sentence(error)}"
        ) from error
    if found is None:
        raise RequestError(
            f"{folder / CONFIG_FILE}: weights are quantised in a way transformers does not know "
            f"(quant_method {method!r})"
        )


def _quantized(config: Any) -> Any:
    return getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )


# --- modules and vocabulary


def _skeleton(folder: Path, found: Inspection, trust_remote_code: bool) -> None:
    from mona.architecture import find_decoder, skeleton

    try:
        model = skeleton(found.config, trust_remote_code)
    except MemoryError:
        raise
    except Exception as error:  # as in _read_config: a field that the architecture can't take
        raise RequestError(f"{folder / CONFIG_FILE}: {sentence(error)}") from error
    found.decoder, found.block_list = find_decoder(model, found.blocks)
    found.skeleton = model


def _layer(found: Inspection, layer: int, folder: Path, mlp: bool) -> None:
    from mona.architecture import gated_down_projection

    kept = absolute_layer(layer, found.blocks)
    if not mlp or found.skeleton is None:
        return
    block = found.block_list[kept - 1]
    if gated_down_projection(block) is None:
        raise RequestError(
            f"representation 'mlp_topk' reads a gated MLP; block {kept} of {folder} "
            f"({found.config.get_text_config().model_type}, {type(block).__name__}) has none"
        )


def refuse_past_positions(found: Inspection, folder: Path, max_length: int) -> None:
    """RequestError where samples of `max_length` tokens pass the positions of a found model."""
    from mona.architecture import position_limit

    if found.skeleton is None:
        return
    limit = position_limit(found.decoder, found.config.get_text_config())
    if limit is not None and max_length > limit[0]:
        raise RequestError(
            f"max_length {max_length} is past what {folder} takes: {limit[0]} {limit[1]}; "
            f"set max_length to {limit[0]} or less"
        )


def _shapes(folder: Path, found: Inspection) -> None:
    """RequestError where a tensor is stored in another shape than the configuration gives it.

    Tensors that transformers renames on loading, or unpacks, are not compared."""
    if found.skeleton is None or _quantized(found.config):
        return
    expected = {name: list(p.shape) for name, p in found.skeleton.named_parameters()}
    for path in _weight_files(folder):
        for name, shape in tensor_shapes(path).items():
            if name in expected and expected[name] != shape:
                raise RequestError(
                    f"{path}: {name} has shape {shape}, {CONFIG_FILE} gives it {expected[name]}"
                )


def _vocabulary(folder: Path, found: Inspection, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    try:
        found.tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except MemoryError:
        raise
    except Exception as error:  # as in _read_config
        raise RequestError(f"{folder}: the tokenizer does not load: {sentence(error)}") from error
    if found.skeleton is not None:
        rows = len(found.skeleton.get_input_embeddings().weight)
        fault = vocabulary_fault(found.tokenizer, rows)
        if fault is not None:
            raise RequestError(f"{folder}: {fault}")


def vocabulary_fault(tokenizer: Any, rows: int) -> str | None:
    """What is wrong where the embedding has `rows` rows and the tokenizer gives ids past them.

    Added tokens that neither text nor the template can bring (Gemma 3's for images) may lie
    past the rows: content is encoded as plain text whatever it spells.
    """
    added = tokenizer.added_tokens_decoder
    past = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    template = str(getattr(tokenizer, "chat_template", None) or "")
    in_use = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for i, token in past:
        if i not in added or i in in_use or token in template:
            return (
                f"tokenizer and model disagree: {len(tokenizer)} tokens, but the embedding has "
                f"{rows} rows, none for token {token!r} (id {i})"
            )
    return None
