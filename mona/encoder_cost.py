"""What a forward pass costs, from a model's dimensions: for plans, before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

# Sustained rates assumed for a plan: one CPU core in float32, one GPU in bfloat16.
_CPU_CORE_FLOPS = 5e10
_GPU_FLOPS = 2e14


@dataclass(frozen=True, slots=True)
class Architecture:
    """The dimensions of a decoder with gated MLPs."""

    blocks: int
    width: int
    mlp_width: int
    query_width: int
    key_width: int

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
        )

    def seconds(self, tokens: int, layer: int, device: str) -> float:
        """An estimate for the blocks up to `layer`: two operations a weight and token."""
        kept = layer if layer >= 0 else self.blocks + 1 + layer
        attention = 2 * self.width * (self.query_width + self.key_width)
        weights = kept * (attention + 3 * self.width * self.mlp_width)
        rate = _GPU_FLOPS if device == "cuda" else _CPU_CORE_FLOPS * (os.cpu_count() or 1)
        return 2.0 * weights * tokens / rate
