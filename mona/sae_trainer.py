"""One optimiser step of a TopK SAE after another (Gao et al. 2024, arXiv 2406.04093), and the
state between two steps as a file.

Which tokens come in which order, their scale, and when to save are `mona.sae_training`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mona.errors import WorkError
from mona.spec import SaeTraining

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATE_FILE = "state.safetensors"
WARM_UP_SHARE = 0.05
DECAY_SHARE = 0.2
# A latent silent for this share of the steps counts as dead and is offered the residual (the
# auxiliary loss of section A.2).
DEAD_AFTER_SHARE = 0.1
AUX_LOSS = 1 / 32
_LARGEST_GRADIENT = 1.0


class TopKTrainer:
    """Weights w_enc [d, latents], b_enc, w_dec [latents, d] with rows of unit norm, b_dec, all
    float32, read as z = topk(relu((scale x - b_dec) w_enc + b_enc), k); Adam on the summed
    squared error. `scale` is set from outside before the first step."""

    def __init__(self, d: int, spec: SaeTraining, steps: int, device: str | torch.device) -> None:
        import torch

        generator = torch.Generator().manual_seed(spec.seed)
        decoder = torch.randn(spec.latents, d, generator=generator)
        decoder /= decoder.norm(dim=1, keepdim=True)
        # The encoder begins as the decoder's transpose: a latent reads what it writes.
        self.weights: dict[str, Tensor] = {
            "w_enc": decoder.T.contiguous(),
            "b_enc": torch.zeros(spec.latents),
            "w_dec": decoder,
            "b_dec": torch.zeros(d),
        }
        for name, value in self.weights.items():
            self.weights[name] = value.to(device).requires_grad_()
        self.optimiser = torch.optim.Adam(self.weights.values(), lr=spec.learning_rate)
        self.scale = 1.0
        self.steps_done = 0
        self._silent = torch.zeros(spec.latents, dtype=torch.int64, device=device)
        self._spec, self._steps = spec, steps

    def step(self, batch: Tensor) -> None:
        """One step on states [n, d] as the model gave them."""
        import torch

        states = batch.to(self.weights["b_dec"].device, torch.float32) * self.scale
        w_enc, b_enc, w_dec, b_dec = self.weights.values()
        pre = torch.addmm(b_enc, states - b_dec, w_enc)
        values, latents = pre.topk(self._spec.k, dim=1, sorted=False)
        values = values.relu()
        rebuilt = _weighted_rows(latents, values, w_dec) + b_dec
        loss = (rebuilt - states).square().sum(dim=1).mean()
        dead = self._silent > math.ceil(self._steps * DEAD_AFTER_SHARE)
        loss = loss + self._auxiliary(pre, dead, (states - rebuilt).detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), _LARGEST_GRADIENT)
        for group in self.optimiser.param_groups:
            group["lr"] = self._spec.learning_rate * self._rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            w_dec /= w_dec.norm(dim=1, keepdim=True).clamp(min=1e-8)
        self._silent += 1
        self._silent[latents[values > 0]] = 0
        self.steps_done += 1

    def _auxiliary(self, pre: Tensor, dead: Tensor, residual: Tensor) -> Tensor:
        """What the strongest dead latents leave of the residual; 0 where none is dead."""
        count = int(dead.sum())
        if count == 0:
            return pre.new_zeros(())
        wanted = max(1, residual.shape[1] // 2)  # Gao et al., B.1
        k = min(wanted, count)
        among = dead.nonzero()[:, 0]
        values, found = pre[:, among].topk(k, dim=1, sorted=False)
        rebuilt = _weighted_rows(among[found], values, self.weights["w_dec"])
        share = min(count / wanted, 1.0)
        return AUX_LOSS * share * (rebuilt - residual).square().sum(dim=1).mean()

    def _rate(self) -> float:
        """The learning rate's factor at this step: up, level, and down to nothing."""
        warm_up, decay = int(self._steps * WARM_UP_SHARE), int(self._steps * DECAY_SHARE)
        up = (self.steps_done + 1) / warm_up if self.steps_done < warm_up else 1.0
        down = (self._steps - self.steps_done) / decay if decay else 1.0
        return min(up, down, 1.0)

    def save(self, folder: Path) -> None:
        """Everything the next step depends on, as one file in a new folder."""
        import torch
        from safetensors.torch import save_file

        state = {name: value.detach() for name, value in self.weights.items()}
        for name, value in self.weights.items():
            for part, moment in self.optimiser.state[value].items():
                state[f"{name}.{part}"] = moment
        state["silent"] = self._silent
        state["progress"] = torch.tensor([self.steps_done, self.scale], dtype=torch.float64)
        folder.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in state.items()}, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Goes on from what `save` wrote. WorkError where it is not that."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / STATE_FILE
        try:
            state = load_file(path)
            with torch.no_grad():
                for name, value in self.weights.items():
                    value.copy_(state[name])
                    self.optimiser.state[value] = {
                        key.partition(".")[2]: moment.to(value.device)
                        if moment.ndim
                        else moment.clone()
                        for key, moment in state.items()
                        if key.startswith(f"{name}.")
                    }
            self._silent.copy_(state["silent"])
            steps_done, self.scale = state["progress"].tolist()
            self.steps_done = int(steps_done)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise WorkError(f"{path}: can't be continued from ({error}); delete it") from error


def _weighted_rows(rows: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """sum_j weights[i, j] matrix[rows[i, j]]: [n, d], without a dense [n, latents]."""
    from torch.nn.functional import embedding_bag

    return embedding_bag(rows, matrix, per_sample_weights=weights, mode="sum")
