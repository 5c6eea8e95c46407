"""The language model as an encoder: residual streams of one layer for batches of samples.

The model is cut after the blocks that the layer needs; the final norm and the LM head never
run. Which tokens count is `mona.tokens`; what becomes of the streams is `mona.sae` and
`mona.views`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mona.bfloat16 import bfloat16_products
from mona.checkpoints import deciding_files, quiet_transformers, refuse_nan
from mona.errors import RequestError, WorkError
from mona.spec import SystemTurns, Template, TokenPolicy
from mona.tokens import Renderer, Tokenised


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The counted tokens of a batch of S samples, concatenated in batch order.

    states: [T, width] in the encoder's dtype; mlp: [T, mlp_width], the gated-MLP activations
    act(gate) * up of the layer's block; offsets: int64 [S + 1].
    """

    states: Tensor
    mlp: Tensor
    offsets: np.ndarray


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, whose padded size (rows x longest)
    stays within `max_tokens`; a row longer than that is alone. Ties go by index."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        fits = batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens
        if fits:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def absolute_layer(layer: int, blocks: int) -> int:
    """The number of blocks that produce hidden_states[layer] of a model with `blocks` blocks.

    hidden_states has blocks + 1 entries, the embedding first; -2 is the output of the
    penultimate block. RequestError outside 1..blocks.
    """
    absolute = layer if layer >= 0 else blocks + 1 + layer
    if not 1 <= absolute <= blocks:
        raise RequestError(f"layer {layer} is outside the model: 1 to {blocks}, or {-blocks} to -1")
    return absolute


class Encoder:
    """A truncated causal language model with its renderer."""

    def __init__(self, backbone: Any, renderer: Renderer, layer: int, device: str) -> None:
        self.backbone = backbone
        self.renderer = renderer
        self.layer = layer
        self.device = torch.device(device)
        self.width = int(backbone.config.hidden_size)
        self._seen: dict[int, Tensor] = {}
        self._mlp: Tensor | None = None
        self._wanted: frozenset[int] = frozenset({layer})
        blocks = _blocks(backbone)
        for index, block in enumerate(blocks, start=1):
            block.register_forward_hook(self._keep_output(index))
        down = _down_projection(blocks[layer - 1])
        self.mlp_width = int(down.in_features)
        down.register_forward_pre_hook(self._keep_mlp)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        layer: int,
        dtype: str,
        device: str,
        template: Template,
        policy: TokenPolicy,
        max_length: int,
        trust_remote_code: bool = False,
        system: SystemTurns = "keep",
        blocks_after: int = 0,
    ) -> Encoder:
        """The encoder of a model folder at `layer` (an index into hidden_states).

        `dtype` is float32 or bfloat16, `device` cpu or cuda; `blocks_after` keeps that many
        blocks past the layer where the model has them, for `forward_layers`.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        quiet_transformers()
        deciding_files(folder)
        if device == "cuda" and not torch.cuda.is_available():
            raise RequestError("device cuda: torch sees no CUDA device here")
        options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        try:
            config = AutoConfig.from_pretrained(folder, **options)
            text = config.get_text_config()
            kept = absolute_layer(layer, text.num_hidden_layers)
            text.num_hidden_layers = min(text.num_hidden_layers, kept + blocks_after)
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[: text.num_hidden_layers]
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                attn_implementation="sdpa",
                output_loading_info=True,
                **options,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RequestError(f"{folder}: the model does not load: {first}") from error
        model, loading = loaded
        if loading["missing_keys"]:
            # transformers would fill them with random values.
            raise RequestError(f"{folder}: no weights for tensor '{min(loading['missing_keys'])}'")
        refuse_nan(model, str(folder))
        backbone = model.get_decoder()
        backbone.norm = nn.Identity()
        backbone.eval().requires_grad_(False).to(device)
        renderer = Renderer(tokenizer, template, policy, max_length, system)
        return cls(backbone, renderer, kept, device)

    @property
    def embedding(self) -> nn.Module:
        """The embedding layer: it runs once a forward pass."""
        return self.backbone.get_input_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and residual streams."""
        return self.backbone.get_input_embeddings().weight.dtype

    @property
    def neighbours(self) -> list[int]:
        """The layer with those beside it that this encoder has blocks for."""
        last = len(_blocks(self.backbone))
        return [i for i in (self.layer - 1, self.layer, self.layer + 1) if 1 <= i <= last]

    @torch.inference_mode()
    def forward(self, batch: Sequence[Tokenised]) -> TokenStates:
        """Residual streams and MLP activations of the batch's counted tokens.

        On out-of-memory the batch is halved until it fits; WorkError when one sample alone
        does not. A sample's rows do not depend on its neighbours beyond the dtype's rounding.
        """
        try:
            return self._forward(batch)
        except torch.OutOfMemoryError:
            self._seen.clear()
            self._mlp = None
            if len(batch) == 1:
                raise WorkError(
                    f"out of memory on one sample of {len(batch[0].ids)} tokens: lower max_length"
                ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        first, second = self.forward(batch[:half]), self.forward(batch[half:])
        return TokenStates(
            torch.cat([first.states, second.states]),
            torch.cat([first.mlp, second.mlp]),
            np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        )

    @torch.inference_mode()
    def forward_layers(
        self, batch: Sequence[Tokenised], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """{layer: residual streams [T, width]} of the batch's counted tokens."""
        before, self._wanted = self._wanted, frozenset(layers)
        try:
            counted = self._run(batch)
            return {layer: self._seen.pop(layer)[counted] for layer in layers}
        finally:
            self._wanted = before
            self._mlp = None

    def _forward(self, batch: Sequence[Tokenised]) -> TokenStates:
        counted = self._run(batch)
        counts = [int(row.counted.sum()) for row in batch]
        assert self._mlp is not None
        made = TokenStates(
            self._seen.pop(self.layer)[counted],
            self._mlp[counted],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )
        self._mlp = None
        return made

    def _run(self, batch: Sequence[Tokenised]) -> Tensor:
        """Runs the blocks; returns the counted mask [S, n] on the device."""
        longest = max([1, *(len(row.ids) for row in batch)])
        ids = np.zeros((len(batch), longest), np.int64)
        counted = np.zeros((len(batch), longest), bool)
        for i, row in enumerate(batch):
            ids[i, : len(row.ids)] = row.ids
            counted[i, : len(row.ids)] = row.counted
        # Padding is on the right and attention is causal, so a real token never sees padding:
        # without a mask the fused causal kernel is used.
        inputs = torch.from_numpy(ids).to(self.device)
        with bfloat16_products(self.device.type, self.dtype):
            self.backbone(input_ids=inputs, use_cache=False)
        return torch.from_numpy(counted).to(self.device)

    def _keep_output(self, index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if index in self._wanted:
                self._seen[index] = output[0] if isinstance(output, tuple) else output

        return hook

    def _keep_mlp(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._mlp = inputs[0]


def _blocks(backbone: nn.Module) -> nn.ModuleList:
    """The transformer blocks, under the names decoders give them."""
    for name in ("layers", "h", "blocks"):
        found = getattr(backbone, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise RequestError(f"the blocks of {type(backbone).__name__} are not where they are known")


def _down_projection(block: nn.Module) -> nn.Linear:
    """The projection whose input is act(gate) * up, by the names that gated MLPs use."""
    for name in ("down_proj", "w2", "dense_4h_to_h", "fc2", "c_proj"):
        found = [m for n, m in block.named_modules() if n.endswith(f"mlp.{name}")]
        if found and isinstance(found[0], nn.Linear):
            return found[0]
    raise RequestError(f"{type(block).__name__} has no MLP projection this encoder knows")
