"""The sparse autoencoder: one canonical form, its file format, and the codes it makes.

Reading other projects' files into this form is `mona.sae_formats`, training one is
`mona.sae_training`, judging one is `mona.sae_quality`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mona.codes import Codes, concatenate, from_rows
from mona.errors import RequestError, WorkError
from mona.publishing import published_folder

Activation = Literal["topk", "jumprelu", "relu"]
InputNorm = Literal["none", "centre", "constant_norm_rescale", "layer_norm"]

WEIGHTS_FILE = "sae.safetensors"
RECORD_FILE = "sae.json"
# What two computations of one code may differ by, relative to the row's largest value: float16
# storage rounds by 2^-11, float32 products add far less.
CODE_RTOL = 2.0**-10
# Pre-activations exist for this many bytes at a time, and so do the pooling accumulators.
DENSE_BYTES = 64 * 2**20
_LAYER_NORM_EPS = 1e-5  # as sae-lens has it


@dataclass(frozen=True, eq=False)
class Active:
    """The non-zero latents of T tokens, sorted by token: three arrays of one length.

    tokens: int64 in [0, T); latents: int64 in [0, d_sae); values: float32, >= 0 (a value can be
    0 where fewer than K pre-activations are positive).
    """

    tokens: Tensor
    latents: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """An SAE of residual-stream width d with d_sae latents; all tensors float32.

    w_enc: [d, d_sae]; b_enc: [d_sae]; w_dec: [d_sae, d]; b_dec: [d].
    activation: "topk" keeps the `k` largest pre-activations and applies ReLU; "jumprelu" applies
    ReLU to pre-activations above `threshold` [d_sae]; "relu" applies ReLU alone.
    apply_b_dec_to_input: the encoder reads x - b_dec. input_norm: what is done to x before that,
    and undone after decoding: "centre" takes off x's mean over d, "constant_norm_rescale" scales
    x to norm sqrt(d), "layer_norm" standardises it.

    Decoder norms and gates of other projects' SAEs are folded into these tensors on reading.

    >>> import torch, mona
    >>> eye, nothing = torch.eye(3), torch.zeros(3)
    >>> sae = mona.SparseAutoencoder(eye, nothing, eye, nothing, "topk", k=1)
    >>> active = sae.active(torch.tensor([[0.5, 2.0, 1.0]]))
    >>> active.latents.tolist(), active.values.tolist()
    ([1], [2.0])
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    activation: Activation
    k: int | None = None
    threshold: Tensor | None = None
    apply_b_dec_to_input: bool = True
    input_norm: InputNorm = "none"

    def __post_init__(self) -> None:
        d, latents = self.w_enc.shape
        expected: dict[str, tuple[int, ...]] = {
            "w_enc": (d, latents),
            "b_enc": (latents,),
            "w_dec": (latents, d),
            "b_dec": (d,),
            "threshold": (latents,),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != expected[name]:
                raise RequestError(
                    f"SAE tensor {name} has shape {list(tensor.shape)}, "
                    f"expected {list(expected[name])}"
                )
            if not bool(tensor.isfinite().all()):
                raise WorkError(f"SAE tensor {name} holds values that are not finite")
        if (self.threshold is None) == (self.activation == "jumprelu"):
            raise RequestError("an SAE has a threshold exactly when its activation is jumprelu")
        if self.activation == "topk" and self.k is None:
            raise RequestError("an SAE with activation topk needs k")
        self._cap(self.k)

    @property
    def d(self) -> int:
        """Width of the residual stream it reads."""
        return self.w_enc.shape[0]

    @property
    def latents(self) -> int:
        return self.w_enc.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, in the order they are digested."""
        named = {
            "w_enc": self.w_enc,
            "b_enc": self.b_enc,
            "w_dec": self.w_dec,
            "b_dec": self.b_dec,
        }
        return named if self.threshold is None else {**named, "threshold": self.threshold}

    def to(self, device: str | torch.device) -> SparseAutoencoder:
        """The same SAE with its tensors on `device`."""
        moved: dict[str, Any] = {name: t.to(device) for name, t in self.tensors().items()}
        return replace(self, **moved)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what makes codes: tensors (float32 bytes) and conventions."""
        digest = hashlib.sha256(json.dumps(self._method(), sort_keys=True).encode("utf-8"))
        for name, tensor in self.tensors().items():
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def _method(self) -> dict[str, Any]:
        return {
            "d": self.d,
            "latents": self.latents,
            "k": self.k,
            "activation": self.activation,
            "conventions": {
                "apply_b_dec_to_input": self.apply_b_dec_to_input,
                "input_norm": self.input_norm,
            },
        }

    # --- files

    def save(self, folder: Path) -> None:
        """Write the record and the weights to `folder`, replacing what was there.

        A reader never meets half an SAE.
        """
        from safetensors.torch import save_file

        with published_folder(folder, replace=True) as written:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
            save_file(tensors, written / WEIGHTS_FILE)
            text = json.dumps({**self._method(), "digest": self.digest}, indent=2)
            (written / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
        """The SAE saved in `folder`. WorkError if its bytes are not those that were saved."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        record = _read_record(folder)
        try:
            tensors: dict[str, Any] = load_file(folder / WEIGHTS_FILE)
        except FileNotFoundError as error:
            raise RequestError(f"{folder} has no {WEIGHTS_FILE}") from error
        except SafetensorError as error:
            raise WorkError(f"{folder / WEIGHTS_FILE} is damaged: {error}") from error
        try:
            sae = SparseAutoencoder(
                **tensors,
                activation=record["activation"],
                k=record["k"],
                **record["conventions"],
            )
        except (KeyError, TypeError) as error:
            raise WorkError(f"{folder} is no SAE of this format: {error}") from error
        except WorkError as error:
            raise WorkError(f"{folder / WEIGHTS_FILE}: {error}") from error
        if sae.digest != record["digest"]:
            raise WorkError(f"{folder / WEIGHTS_FILE} does not hash to the digest in {RECORD_FILE}")
        return sae.to(device)

    # --- the method

    def pre_activations(self, states: Tensor) -> Tensor:
        """W_enc (x - b_dec) + b_enc: float32 [T, d_sae] for states [T, d] of any float dtype.

        The whole result is made at once: give at most `chunk_tokens` tokens.
        """
        centred, _, _ = self._normalised(states)
        if self.apply_b_dec_to_input:
            centred = centred - self.b_dec
        return self.b_enc.addmm(centred, self.w_enc)

    @property
    def chunk_tokens(self) -> int:
        """How many tokens' pre-activations fit DENSE_BYTES."""
        return max(1, DENSE_BYTES // (4 * self.latents))

    def active(self, states: Tensor, k: int | None = None) -> Active:
        """The latents that states [T, d] activate; T at most `chunk_tokens`.

        TopK(ReLU(W_enc (x - b_dec) + b_enc)) (MONA, section 3.1), with the SAE's own gate where
        it has one; `k` replaces the SAE's k, and only caps what passes another gate.

        Raises RequestError on states of another width or k outside 1..d_sae, and WorkError on
        states that are not finite.
        """
        if states.shape[1] != self.d:
            raise RequestError(
                f"the SAE reads a residual stream of width {self.d}; "
                f"the model's has width {states.shape[1]}"
            )
        if not bool(states.isfinite().all()):
            raise WorkError("the residual stream holds values that are not finite")
        cap = self._cap(self.k if k is None else k)
        gated = self.pre_activations(states)
        if self.threshold is not None:
            gated = gated * (gated > self.threshold)
        if cap is None:
            tokens, latents = (gated > 0).nonzero(as_tuple=True)
            return Active(tokens, latents, gated[tokens, latents])
        # ReLU after top-k keeps the same latents as before it, and touches K values, not d_sae.
        values, latents = gated.topk(cap, dim=1, sorted=False)
        tokens = torch.arange(len(states), device=states.device).repeat_interleave(cap)
        return Active(tokens, latents.flatten(), values.clamp_(min=0).flatten())

    def decode(self, active: Active, states: Tensor) -> Tensor:
        """The reconstruction W_dec^T z + b_dec, float32 [T, d], of the T states that gave
        `active` (they are read for the input norm's scale only)."""
        codes = self.w_dec.new_zeros(len(states), self.latents)
        codes[active.tokens, active.latents] = active.values
        _, shift, scale = self._normalised(states)
        return self.b_dec.addmm(codes, self.w_dec) * scale + shift

    def reconstruct(self, states: Tensor, k: int | None = None) -> Tensor:
        """x_hat [T, d], float32, for states [T, d]; any T."""
        rebuilt = self.w_dec.new_empty(len(states), self.d)
        for start in range(0, len(states), self.chunk_tokens):
            chunk = states[start : start + self.chunk_tokens]
            rebuilt[start : start + len(chunk)] = self.decode(self.active(chunk, k), chunk)
        return rebuilt

    def encode(
        self,
        states: Tensor,
        offsets: np.ndarray,
        k: int | None = None,
        pooling: Literal["mean", "sum"] = "mean",
    ) -> Codes:
        """Codes of S samples: the mean (or sum) of their tokens' latents.

        states: [T, d], the counted tokens of all samples in order; offsets: int64 [S + 1], sample
        i holds the tokens offsets[i]:offsets[i + 1] and may hold none. Raises as `active` does,
        and WorkError when a pooled value does not fit float16.
        """
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(states):
            raise ValueError(f"offsets span {offsets[0]}..{offsets[-1]}, not 0..{len(states)}")
        group = max(1, DENSE_BYTES // (8 * self.latents))
        return concatenate(
            [
                self._encode_group(states, offsets[start : start + group + 1], k, pooling)
                for start in range(0, len(offsets) - 1, group)
            ]
        )

    def _encode_group(
        self, states: Tensor, offsets: np.ndarray, k: int | None, pooling: str
    ) -> Codes:
        samples = len(offsets) - 1
        lengths = torch.from_numpy(np.diff(offsets)).to(states.device)
        sample_of_token = torch.arange(samples, device=states.device).repeat_interleave(lengths)
        # float64, so that neither chunk borders nor the order of additions show in the result.
        sums = torch.zeros(samples * self.latents, dtype=torch.float64, device=states.device)
        states = states[int(offsets[0]) : int(offsets[-1])]
        for start in range(0, len(states), self.chunk_tokens):
            active = self.active(states[start : start + self.chunk_tokens], k)
            cells = sample_of_token[start + active.tokens] * self.latents + active.latents
            sums.scatter_add_(0, cells, active.values.double())
        pooled = sums.view(samples, self.latents)
        if pooling == "mean":
            pooled /= lengths.clamp(min=1)[:, None]
        rows, latents = pooled.nonzero(as_tuple=True)
        indptr = np.zeros(samples + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows.cpu().numpy(), minlength=samples), out=indptr[1:])
        values = pooled[rows, latents].float()
        return from_rows(indptr, latents.cpu().numpy(), values.cpu().numpy())

    def _cap(self, k: int | None) -> int | None:
        if k is not None and not 1 <= k <= self.latents:
            raise RequestError(f"k = {k} is outside 1..{self.latents}, the SAE's latents")
        return k

    def _normalised(self, states: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """(normalised, shift, scale) with states = normalised * scale + shift."""
        states = states.float()
        tiny = np.finfo(np.float32).tiny
        if self.input_norm == "constant_norm_rescale":
            scale = (states.norm(dim=1, keepdim=True) / self.d**0.5).clamp(min=tiny)
            return states / scale, 0.0, scale
        if self.input_norm == "centre":
            shift = states.mean(dim=1, keepdim=True)
            return states - shift, shift, 1.0
        if self.input_norm == "layer_norm":
            shift = states.mean(dim=1, keepdim=True)
            spread = (states - shift).std(dim=1, keepdim=True)
            return (states - shift) / (spread + _LAYER_NORM_EPS), shift, spread
        return states, 0.0, 1.0


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"{folder} holds no SAE ({RECORD_FILE} is missing)") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or "digest" not in record:
        raise WorkError(f"{path} is no record of an SAE")
    return record
