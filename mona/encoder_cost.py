"""What a forward pass costs, from a model's dimensions: for plans, before anything is loaded.

torch's FlopCounterMode over the model on the meta device would count more architectures, but
building one takes six CPU seconds, most of them imports, and code of the model's own where it has
some: a plan has to be free of both.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

_GPU_FLOPS = 2e14  # a sustained rate assumed of one GPU in bfloat16
# A forward pass in batches of sorted lengths reaches this share of the rate of plain products
# (SmolLM2 on two cores, float32: 99 of 175 GFLOP/s).
_CPU_SHARE = 0.57
_PROBE_WIDTH = 768
_PROBE_TIMES = 4


@functools.cache
def cpu_flops() -> float:
    """Operations a second of float32 products on this machine's CPU, tried out in some hundredths
    of a second. The fastest of a few: what else runs here only slows them down."""
    import numpy as np

    matrix = np.ones((_PROBE_WIDTH, _PROBE_WIDTH), np.float32)
    seconds = []
    for _ in range(_PROBE_TIMES):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2.0 * _PROBE_WIDTH**3 / max(min(seconds), 1e-9)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The dimensions of a decoder with gated MLPs."""

    blocks: int
    width: int
    mlp_width: int
    query_width: int
    key_width: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Architecture:
        """From the fields of a model's config.json."""
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or config["hidden_size"] // heads)
        return cls(
            blocks=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            mlp_width=int(config["intermediate_size"]),
            query_width=heads * head,
            key_width=int(config.get("num_key_value_heads") or heads) * head,
            vocabulary=int(config.get("vocab_size") or 0),
        )

    def weights(self, layer: int) -> int:
        """Weights of the blocks up to `layer`, an index into hidden_states."""
        kept = layer if layer >= 0 else self.blocks + 1 + layer
        attention = 2 * self.width * (self.query_width + self.key_width)
        return kept * (attention + 3 * self.width * self.mlp_width)

    def bytes(self, layer: int, item: int) -> int:
        """Memory of those weights and the embedding, `item` bytes each."""
        return item * (self.weights(layer) + self.vocabulary * self.width)

    def seconds(self, tokens: int, layer: int, device: str) -> float:
        """An estimate for the blocks up to `layer`: two operations a weight and token."""
        rate = _GPU_FLOPS if device == "cuda" else _CPU_SHARE * cpu_flops()
        return 2.0 * self.weights(layer) * tokens / rate
