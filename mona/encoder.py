"""The language model as an encoder: residual streams of one layer for batches of samples.

The model is cut after the blocks that the layer needs; the LM head never runs. What a folder
must be is `mona.model_check`, where the modules are `mona.architecture`; which tokens count is
`mona.tokens`; what becomes of the streams is `mona.sae` and `mona.views`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mona.architecture import (
    find_decoder,
    gated_down_projection,
    same_beginning,
    skeleton,
    uses_layer_norm,
    with_attention,
)
from mona.bfloat16 import bfloat16_products
from mona.checkpoints import refuse_nan
from mona.errors import RequestError, WorkError, sentence
from mona.model_check import absolute_layer, inspect_model
from mona.spec import SystemTurns, Template, TokenPolicy
from mona.tokens import Renderer, Tokenised

_CONTENT = TokenPolicy()


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The counted tokens of a batch of S samples, concatenated in batch order.

    states: [T, width] in the encoder's dtype; mlp: [T, mlp_width], the gated-MLP activations
    act(gate) * up of the layer's block, or None where they were not asked for; offsets: int64
    [S + 1].
    """

    states: Tensor
    mlp: Tensor | None
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


class Encoder:
    """A truncated causal language model with its renderer.

    >>> import mona
    >>> encoder = mona.Encoder.load(model_folder, layer=3)
    >>> pool = mona.read_pool(pool_file)
    >>> batch = encoder.renderer.render_batch([sample.messages for sample in pool[:2]])
    >>> made = encoder.forward(batch)
    >>> made.states.shape == (made.offsets[-1], encoder.width)
    True
    """

    def __init__(
        self,
        backbone: Any,
        blocks: nn.ModuleList,
        embedding: nn.Module,
        renderer: Renderer,
        layer: int,
        device: str,
        mlp: bool,
    ) -> None:
        self.backbone = backbone
        self.blocks = blocks
        # Runs once a forward pass.
        self.embedding: Any = embedding
        self.renderer = renderer
        self.layer = layer
        self.device = torch.device(device)
        self.width = int(backbone.config.hidden_size)
        self.mlp_width = 0
        self._seen: dict[int, Tensor] = {}
        self._mlp: Tensor | None = None
        self._wanted: frozenset[int] = frozenset({layer})
        for index, block in enumerate(blocks, start=1):
            block.register_forward_hook(self._keep_output(index))
        if mlp:
            down = gated_down_projection(blocks[layer - 1])
            if down is None:
                raise RequestError(
                    f"representation 'mlp_topk' reads a gated MLP; "
                    f"{type(blocks[layer - 1]).__name__} has none"
                )
            self.mlp_width = int(down.in_features)
            down.register_forward_pre_hook(self._keep_mlp)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        layer: int,
        dtype: str = "float32",
        device: str = "cpu",
        template: Template = "chat",
        policy: TokenPolicy = _CONTENT,
        max_length: int = 2_048,
        trust_remote_code: bool = False,
        system: SystemTurns = "keep",
        blocks_after: int = 0,
        mlp: bool = False,
    ) -> Encoder:
        """The encoder of a model folder at `layer` (an index into hidden_states).

        `dtype` is float32 or bfloat16, `device` cpu or cuda; `blocks_after` keeps that many
        blocks past the layer where the model has them, for `forward_layers`; `mlp` also keeps
        the activations of the layer's gated MLP.

        Raises RequestError, in one line, on the first fault of `mona.model_check` and on
        whatever the library says when it can't load the weights; WorkError on NaN weights.
        """
        folder = Path(folder)
        if device == "cuda" and not torch.cuda.is_available():
            raise RequestError("device cuda: torch sees no CUDA device here")
        found = inspect_model(
            folder, layer=layer, max_length=max_length, mlp=mlp, trust_remote_code=trust_remote_code
        )
        if found.faults:
            raise RequestError(found.faults[0])
        kept = absolute_layer(layer, found.blocks)
        last = min(found.blocks, kept + blocks_after)
        try:
            config = _cut(found.config, found.skeleton, last, trust_remote_code)
            model, loading = _load_weights(folder, config, dtype, trust_remote_code)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        # Whatever the library raises while it reads a user's model is a fault of that model.
        except Exception as error:
            raise RequestError(f"{folder}: the model does not load: {sentence(error)}") from error
        if loading["missing_keys"]:
            # transformers would fill them with random values.
            raise RequestError(f"{folder}: no weights for tensor '{min(loading['missing_keys'])}'")
        refuse_nan(model, str(folder))
        embedding = model.get_input_embeddings()
        backbone, blocks = find_decoder(model, config.get_text_config().num_hidden_layers)
        del blocks[last:]
        backbone.eval().requires_grad_(False).to(device)
        renderer = Renderer(found.tokenizer, template, policy, max_length, system)
        made = cls(backbone, blocks, embedding, renderer, kept, device, mlp)
        made._require_it_runs(folder)
        return made

    def _require_it_runs(self, folder: Path) -> None:
        """RequestError where two tokens do not pass: a configuration may fit its weights and
        still be of a model that can't run (more experts a token than there are)."""
        tokens = Tokenised(np.zeros(2, np.int32), np.ones(2, bool), 2)
        try:
            with torch.inference_mode():
                self._run([tokens])
        except (MemoryError, torch.OutOfMemoryError, RequestError):
            raise
        # Whatever the library raises while it runs a user's model is a fault of that model.
        except Exception as error:
            raise RequestError(f"{folder}: the model does not run: {sentence(error)}") from error
        finally:
            self._seen.clear()
            self._mlp = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and residual streams."""
        dtype: torch.dtype = self.embedding.weight.dtype
        return dtype

    @property
    def uses_layer_norm(self) -> bool:
        """Whether the model's blocks normalise with LayerNorm and not RMSNorm."""
        return uses_layer_norm(self.blocks[self.layer - 1])

    @property
    def neighbours(self) -> list[int]:
        """The layer with those beside it that this encoder has blocks for."""
        last = len(self.blocks)
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
        both = None
        if first.mlp is not None and second.mlp is not None:
            both = torch.cat([first.mlp, second.mlp])
        return TokenStates(
            torch.cat([first.states, second.states]),
            both,
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
        made = TokenStates(
            self._seen.pop(self.layer)[counted],
            self._mlp[counted] if self._mlp is not None else None,
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
        rows = len(self.embedding.weight)
        if ids.size and int(ids.max()) >= rows:
            raise RequestError(
                f"tokenizer and model disagree: a sample has token id {int(ids.max())}, but the "
                f"embedding has {rows} rows"
            )
        # Padding is on the right and attention is causal, so a real token never sees padding:
        # without a mask the fused causal kernel is used.
        inputs = torch.from_numpy(ids).to(self.device)
        with bfloat16_products(self.device.type, self.dtype):
            self.backbone(input_ids=inputs, use_cache=False)
        for stream in self._seen.values():
            if tuple(stream.shape) != (*ids.shape, self.width):
                raise RequestError(
                    f"{type(self.backbone).__name__}'s blocks give {list(stream.shape)}, no "
                    f"residual stream of width {self.width} a token"
                )
        return torch.from_numpy(counted).to(self.device)

    def _keep_output(self, index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if index in self._wanted:
                self._seen[index] = output[0] if isinstance(output, tuple | list) else output

        return hook

    def _keep_mlp(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._mlp = inputs[0]


def _cut(config: Any, whole: Any, last: int, trust_remote_code: bool) -> Any:
    """`config` with `last` blocks, where the model is then the `whole` one's beginning.

    Else `config` itself: what a block is may depend on how many there are (Gemma 3n's last ones
    share keys and values), or the configuration does not bear the change. Then all blocks are
    loaded, and cut afterwards.
    """
    blocks = config.get_text_config().num_hidden_layers
    if last == blocks:
        return config
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    try:
        text.num_hidden_layers = last
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:last]
        short = skeleton(cut, trust_remote_code)
        kept = find_decoder(short, last)[1]
    except Exception:  # of a library's own kind; the uncut model shows a fault that is real
        return config
    return cut if same_beginning(short, kept, whole, find_decoder(whole, blocks)[1]) else config


def _load_weights(
    folder: Path, config: Any, dtype: str, trust_remote_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The causal language model, and what transformers says of its loading."""
    from transformers import AutoModelForCausalLM

    def build(attention: dict[str, str]) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=copy.deepcopy(config),  # a refused attempt leaves its attention in it
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            **attention,
        )

    loaded: tuple[Any, dict[str, Any]] = with_attention(build)
    return loaded
