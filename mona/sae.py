"""The sparse autoencoder in one canonical form, and the codes it makes of samples.

    z_t = gate((h_t - b_dec) W_enc + b_enc), the K largest kept, zeros dropped
    z_i = mean of z_t over the sample's counted tokens          (paper, section 3)

Files of other formats become this form in `mona.sae_formats`; training is
`mona.sae_training`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mona.codes import Codes, concatenate, from_rows
from mona.errors import RequestError, WorkError

# Codes made in float32 agree with a float64 reference within this, relative to the largest
# value of the row: top-k may swap latents whose pre-activations tie within rounding.
CODE_TOLERANCE = 2e-3

_CHUNK_BYTES = 1 << 28
_TENSORS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """float32 tensors: w_enc [width, latents], b_enc [latents], w_dec [latents, width],
    b_dec [width], and for jumprelu threshold [latents].

    `k` is the TopK width (None for gates that do not fix it). `subtracts_b_dec` says whether
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    activation: Literal["topk", "jumprelu", "relu"]
    k: int | None = None
    threshold: Tensor | None = None
    subtracts_b_dec: bool = True

    def __post_init__(self) -> None:
        width, latents = self.w_enc.shape
        wanted = {
            "b_enc": (latents,), "w_dec": (latents, width), "b_dec": (width,),
            "threshold": (latents,),
        }
        for name, tensor in self._tensors().items():
            if name in wanted and tuple(tensor.shape) != wanted[name]:
                raise RequestError(
                    f"SAE tensor {name} has shape {tuple(tensor.shape)}, not {wanted[name]}"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise WorkError(f"SAE tensor {name} holds a value that is not finite")

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return int(self.w_enc.shape[0])

    @property
    def latents(self) -> int:
        """d', the number of latents."""
        return int(self.w_enc.shape[1])

    def _tensors(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in _TENSORS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _conventions(self) -> dict[str, Any]:
        return {
            "activation": self.activation, "k": self.k, "subtracts_b_dec": self.subtracts_b_dec
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the conventions and the tensors' bytes in fixed order; 32 hex digits."""
        made = hashlib.sha256(json.dumps(self._conventions(), sort_keys=True).encode())
        for name, tensor in self._tensors().items():
            made.update(f"{name}{tuple(tensor.shape)}".encode())
            made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()[:32]

    def save(self, folder: Path) -> None:
        """Writes `sae.safetensors` and `sae.json` in one rename."""
        from safetensors.torch import save_file

        partial = folder.with_name(f"{folder.name}.partial{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        save_file(tensors, partial / "sae.safetensors")
        about = {**self._conventions(), "width": self.width, "latents": self.latents}
        (partial / "sae.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        partial.rename(folder)

    @classmethod
    def load(cls, folder: Path) -> SparseAutoencoder:
        """What `save` wrote. RequestError when a file is missing or does not fit."""
        from safetensors.torch import load_file

        try:
            about = json.loads((folder / "sae.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "sae.safetensors")
        except OSError as error:
            raise RequestError(f"{folder}: no SAE here: {error}") from error
        return cls(
            **tensors,
            activation=about["activation"],
            k=about["k"],
            subtracts_b_dec=about["subtracts_b_dec"],
        )

    def to(self, device: torch.device) -> SparseAutoencoder:
        """The same SAE with its tensors on `device`."""
        if self.w_enc.device == device:
            return self
        return replace(self, **{n: tensor.to(device) for n, tensor in self._tensors().items()})

    def activations(self, states: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """(values, latents), each [T, K]: the K largest gated activations of each token.

        `k` overrides a TopK SAE's own K and caps what other gates let through. Entries past
        a token's active latents have value 0. RequestError when the widths differ.
        """
        if states.shape[1] != self.width:
            raise RequestError(
                f"the SAE takes a residual stream of width {self.width}, "
                f"the model's is {states.shape[1]}"
            )
        entering = states - self.b_dec if self.subtracts_b_dec else states
        pre = torch.addmm(self.b_enc, entering, self.w_enc)
        kept = min(k or self.k or self.latents, self.latents)
        if self.activation == "jumprelu":
            assert self.threshold is not None
            pre = torch.where(pre > self.threshold, pre, torch.zeros_like(pre))
        if kept == self.latents:
            return pre.relu(), torch.arange(self.latents, device=pre.device).expand_as(pre)
        values, latents = torch.topk(pre, kept, dim=1, sorted=False)
        return values.relu(), latents

    @torch.no_grad()
    def encode(
        self,
        states: Tensor,
        offsets: np.ndarray,
        *,
        k: int | None = None,
        pooling: str = "mean",
    ) -> Codes:
        """Codes of S samples from the residual streams [T, width] of their counted tokens.

        Sample i owns rows offsets[i]:offsets[i + 1]; a sample without tokens gets an empty
        code. pooling is "mean" or "sum". WorkError when a state is not finite.
        """
        if not bool(torch.isfinite(states).all()):
            raise WorkError("a residual stream holds a value that is not finite")
        per_chunk = max(1, _CHUNK_BYTES // (4 * self.latents))
        parts: list[Codes] = []
        start = 0
        while start < len(offsets) - 1:
            # Dense accumulators exist for one chunk of samples at a time.
            end = min(len(offsets) - 1, start + max(1, per_chunk // 4))
            parts.append(self._encode_samples(states, offsets[start : end + 1], k, pooling, per_chunk))
            start = end
        return concatenate(parts)

    def _encode_samples(
        self, states: Tensor, offsets: np.ndarray, k: int | None, pooling: str, per_chunk: int
    ) -> Codes:
        samples = len(offsets) - 1
        sums = torch.zeros(samples * self.latents, device=states.device)
        counts = np.diff(offsets)
        owner = torch.from_numpy(np.repeat(np.arange(samples), counts)).to(states.device)
        first, last = int(offsets[0]), int(offsets[-1])
        for start in range(first, last, per_chunk):
            end = min(last, start + per_chunk)
            values, latents = self.activations(states[start:end], k)
            rows = owner[start - first : end - first, None] * self.latents
            sums.index_add_(0, (rows + latents).reshape(-1), values.reshape(-1))
        dense = sums.view(samples, self.latents)
        if pooling == "mean":
            size = torch.from_numpy(np.maximum(counts, 1).astype(np.float32))
            dense = dense / size.to(states.device)[:, None]
        place = dense.nonzero()
        values = dense[place[:, 0], place[:, 1]].cpu().numpy()
        per_row = torch.bincount(place[:, 0], minlength=samples).cpu().numpy()
        indptr = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int64)
        return from_rows(indptr, place[:, 1].cpu().numpy(), values)

    @torch.no_grad()
    def reconstruct(self, states: Tensor, k: int | None = None) -> Tensor:
        """The SAE's estimate of each residual stream, [T, width]."""
        per_chunk = max(1, _CHUNK_BYTES // (4 * self.latents))
        made = []
        for chunk in states.split(per_chunk):
            values, latents = self.activations(chunk, k)
            dense = torch.zeros((len(chunk), self.latents), device=chunk.device)
            made.append(dense.scatter_(1, latents, values) @ self.w_dec + self.b_dec)
        return torch.cat(made) if made else states
