"""Dense views of a sample's residual streams: the representations that codes are compared
with (paper, table 8)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from mona.encoder import TokenStates
from mona.errors import WorkError

MLP_TOP_K = 192


VIEWS = ("mean", "weighted_mean", "mlp_topk")


def dense_views(batch: TokenStates, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The float16 views of S samples that `wanted` names, of VIEWS; a sample without counted
    tokens has rows of zeros.

    mean [S, width]: the mean over counted tokens. weighted_mean [S, width]: weights
    proportional to 1..n over the sample's counted tokens. mlp_topk [S, mlp_width]: each
    token's MLP_TOP_K largest |gated-MLP activations|, averaged over tokens.

    Raises WorkError on a wanted view that is not finite or does not fit float16 (dense means of
    large models may not), and ValueError on one that is no view or whose input is not there.
    """
    unknown = set(wanted) - set(VIEWS)
    if unknown:
        raise ValueError(f"no dense view: {min(unknown)}")
    counts = np.diff(batch.offsets)
    samples = len(counts)
    owner = torch.from_numpy(np.repeat(np.arange(samples), counts)).to(batch.states.device)
    size = torch.from_numpy(np.maximum(counts, 1)).to(batch.states.device).float()
    views: dict[str, np.ndarray] = {}
    if "mean" in wanted:
        sums = _sums(batch.states.float(), owner, samples)
        views["mean"] = _float16(sums / size[:, None], "mean")
    if "weighted_mean" in wanted:
        position = np.concatenate([np.arange(1, n + 1) for n in counts] or [np.zeros(0)])
        weight = torch.from_numpy(position.astype(np.float32)).to(batch.states.device)
        sums = _sums(batch.states.float() * weight[:, None], owner, samples)
        total = size * (size + 1) / 2
        views["weighted_mean"] = _float16(sums / total[:, None], "weighted_mean")
    if "mlp_topk" in wanted:
        if batch.mlp is None:
            raise ValueError("mlp_topk needs an encoder loaded with mlp=True")
        magnitude = batch.mlp.float().abs()
        top = torch.topk(magnitude, min(MLP_TOP_K, magnitude.shape[1]), dim=1, sorted=False)
        kept = torch.zeros_like(magnitude).scatter_(1, top.indices, top.values)
        views["mlp_topk"] = _float16(_sums(kept, owner, samples) / size[:, None], "mlp_topk")
    return views


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
