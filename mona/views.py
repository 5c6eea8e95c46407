"""Dense views of a sample's residual streams: the representations that codes are compared
with (paper, table 8)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mona.encoder import TokenStates
from mona.errors import WorkError

MLP_TOP_K = 192


def dense_views(batch: TokenStates) -> dict[str, np.ndarray]:
    """float16 views of S samples; a sample without counted tokens has rows of zeros.

    mean [S, width]: the mean over counted tokens. weighted_mean [S, width]: weights
    proportional to 1..n over the sample's counted tokens. mlp_topk [S, mlp_width]: each
    token's MLP_TOP_K largest |gated-MLP activations|, averaged over tokens.
    """
    counts = np.diff(batch.offsets)
    samples = len(counts)
    owner = torch.from_numpy(np.repeat(np.arange(samples), counts)).to(batch.states.device)
    size = torch.from_numpy(np.maximum(counts, 1)).to(batch.states.device).float()
    position = torch.from_numpy(
        np.concatenate([np.arange(1, n + 1) for n in counts] or [np.zeros(0)]).astype(np.float32)
    ).to(batch.states.device)
    states = batch.states.float()
    magnitude = batch.mlp.float().abs()
    top = torch.topk(magnitude, min(MLP_TOP_K, magnitude.shape[1]), dim=1, sorted=False)
    kept = torch.zeros_like(magnitude).scatter_(1, top.indices, top.values)
    total = size * (size + 1) / 2
    return {
        "mean": _float16(_sums(states, owner, samples) / size[:, None], "mean"),
        "weighted_mean": _float16(
            _sums(states * position[:, None], owner, samples) / total[:, None], "weighted_mean"
        ),
        "mlp_topk": _float16(_sums(kept, owner, samples) / size[:, None], "mlp_topk"),
    }


def token_norms(batch: TokenStates) -> np.ndarray:
    """The Euclidean norm of each counted token's residual stream, float32 [T]."""
    return batch.states.float().norm(dim=1).cpu().numpy()


def _sums(rows: Tensor, owner: Tensor, samples: int) -> Tensor:
    return torch.zeros((samples, rows.shape[1]), device=rows.device).index_add_(0, owner, rows)


def _float16(view: Tensor, name: str) -> np.ndarray:
    values = view.cpu().numpy()
    if not np.isfinite(values).all():
        raise WorkError(f"view '{name}' holds a value that is not finite")
    largest = float(np.abs(values).max()) if values.size else 0.0
    if largest > float(np.finfo(np.float16).max):
        raise WorkError(f"view '{name}': {largest:.6g} does not fit float16")
    return values.astype(np.float16)
