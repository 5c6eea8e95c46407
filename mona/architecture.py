"""What the encoder must know of a causal language model's modules: where its blocks are, which
of its MLPs are gated, how long a sample it takes.

Everything here reads modules and configuration alone, so it holds for a loaded model as for a
skeleton on torch's meta device, which has shapes and no values. Files are `mona.model_check`;
running a model is `mona.encoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mona.errors import RequestError

# Names that decoders give their list of blocks; another list counts where its length fits.
_BLOCK_LISTS = ("layers", "h", "blocks")
# The projection that reads act(gate) * up, and the projections beside it that make both.
_GATED = {"down_proj": ({"gate_proj", "up_proj"}, {"gate_up_proj"}), "w2": ({"w1", "w3"},)}
# Rotary positions that change for every token of a batch once one sample is longer.
_LENGTH_DEPENDENT_ROPE = {"longrope", "dynamic"}


def with_attention(build: Callable[[dict[str, str]], Any]) -> Any:
    """`build` with the attention that transformers chooses for the architecture, and with its
    plain one where that is refused (a config that names a kernel which isn't installed)."""
    try:
        return build({})
    except (ImportError, ValueError, NotImplementedError) as error:
        said = str(error).lower()
        if "attention" not in said and "attn" not in said:
            raise
    return build({"attn_implementation": "eager"})


def skeleton(config: Any, trust_remote_code: bool = False) -> Any:
    """The model that `config` describes, on the meta device: it takes no memory."""
    from transformers import AutoModelForCausalLM

    def build(attention: dict[str, str]) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, **attention
            )

    return with_attention(build)


def find_decoder(model: nn.Module, blocks: int) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the `blocks` transformer blocks, and the list that holds them.

    RequestError where no module below the model's decoder holds a list of that length.
    """
    waiting: list[nn.Module] = [model.get_decoder()]  # type: ignore[operator]
    while waiting:
        module = waiting.pop(0)
        lists = {
            name: child
            for name, child in module.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == blocks
        }
        for name in (*_BLOCK_LISTS, *lists):
            if name in lists:
                return module, lists[name]
        waiting.extend(m for m in module.children() if not isinstance(m, nn.ModuleList))
    raise RequestError(f"the blocks of {type(model).__name__} are not where they are known")


def gated_down_projection(block: nn.Module) -> nn.Linear | None:
    """The projection of the block's MLP whose input is act(gate) * up; None where the block has
    no such MLP (a mixture of experts, an MLP without a gate)."""
    for name in ("mlp", "feed_forward"):
        inside = dict(getattr(block, name, nn.Identity()).named_children())
        for down, makers in _GATED.items():
            projection = inside.get(down)
            if isinstance(projection, nn.Linear) and any(m <= inside.keys() for m in makers):
                return projection
    return None


def same_beginning(
    short: nn.Module, kept: nn.ModuleList, whole: nn.Module, blocks: nn.ModuleList
) -> bool:
    """Whether the `short` model with its `kept` blocks is the `whole` one cut after as many:
    the same module types and plain settings in each block, the same shapes everywhere."""
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    return all(
        shapes.get(name) == parameter.shape for name, parameter in short.named_parameters()
    ) and all(_settings(one) == _settings(other) for one, other in zip(kept, blocks, strict=False))


def _settings(block: nn.Module) -> list[Any]:
    plain = (bool, int, float, str, type(None))
    return [
        (name, type(m), {k: v for k, v in vars(m).items() if isinstance(v, plain)})
        for name, m in block.named_modules()
    ]


def uses_layer_norm(block: nn.Module) -> bool:
    """Whether the block normalises with LayerNorm, which subtracts the mean, and not RMSNorm."""
    return any(isinstance(module, nn.LayerNorm) for module in block.modules())


def position_limit(decoder: nn.Module, config: Any) -> tuple[int, str] | None:
    """(tokens, why) of the longest sample that has positions of its own; None where positions
    have no end. `config` is the text configuration.

    Learned and tabulated positions end with their table. Some rotary scalings change the
    positions of a whole batch where one of its samples is longer than the model was first
    trained on: up to there a sample does not depend on its neighbours.
    """
    limits = [(rows, "positions") for rows in _position_tables(decoder)]
    if config.model_type == "mpt":
        limits.append((int(config.max_seq_len), "positions"))
    for rope in _rope_settings(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind in _LENGTH_DEPENDENT_ROPE:
            border = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            limits.append(
                (int(border), f"positions before its {kind} scaling, which depends on the batch")
            )
    return min(limits, default=None)


def _position_tables(decoder: nn.Module) -> list[int]:
    rows = []
    for name, module in decoder.named_modules():
        last = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Embedding) and ("position" in last or last == "wpe"):
            # OPT and BioGPT keep the first rows of the table for padding.
            rows.append(module.num_embeddings - int(getattr(module, "offset", 0)))
        for table in ("embed_positions", "pos_encoding"):
            found = getattr(module, table, None)
            if isinstance(found, Tensor):
                rows.append(len(found))
    return rows


def _rope_settings(config: Any) -> list[dict[str, Any]]:
    """The rotary settings, one set or one a kind of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)]
    return nested or [given]
