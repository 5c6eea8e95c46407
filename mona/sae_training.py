"""Training a TopK SAE on any stream of token activations, resumably.

The training step, its losses and the optimiser are sae-lens'; here are the order of tokens, the
input scale, the settings, and checkpoints. Which tokens to train on is the caller's choice.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.errors import RequestError, WorkError
from mona.sae import SparseAutoencoder
from mona.spec import SaeTraining

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHECKPOINTS = 20  # a run; each holds three copies of the weights, Adam's moments included
SETTINGS_FILE = "settings.json"
STEP_PREFIX = "step_"
BUFFER_BATCHES = 32  # tokens are mixed over this many batches
SCALE_BATCHES = 8  # the first ones, which set the input scale
WARM_UP_SHARE = 0.05
DECAY_SHARE = 0.2
# A latent silent for this share of the steps counts as dead and is offered the residual (the
# auxiliary loss of Gao et al. 2024, appendix A.2).
DEAD_AFTER_SHARE = 0.1
AUX_LOSS = 1 / 32


def shuffled_batches(
    samples: Iterable[Tensor], batch_tokens: int, buffer_tokens: int, seed: int
) -> Iterator[Tensor]:
    """Batches [batch_tokens, d] of the samples' tokens [n_i, d], mixed in a bounded buffer.

    Once the buffer holds `buffer_tokens` it is shuffled and half of it served. Every token is
    served once, but for a remainder smaller than a batch: floor(sum n_i / batch_tokens) batches.
    """
    import torch

    if buffer_tokens < batch_tokens:
        raise ValueError(f"a buffer of {buffer_tokens} tokens holds no batch of {batch_tokens}")
    generator = torch.Generator().manual_seed(seed)

    def mixed(parts: list[Tensor]) -> Tensor:
        tokens = torch.cat(parts)
        return tokens[torch.randperm(len(tokens), generator=generator)]

    parts: list[Tensor] = []
    held = 0
    for sample in samples:
        parts.append(sample)
        held += len(sample)
        if held >= buffer_tokens:
            tokens = mixed(parts)
            served = max(1, held // 2 // batch_tokens) * batch_tokens
            yield from tokens[:served].split(batch_tokens)
            # A copy, so that the served half is freed.
            parts, held = [tokens[served:].clone()], held - served
    if held >= batch_tokens:
        tokens = mixed(parts)
        yield from tokens[: held // batch_tokens * batch_tokens].split(batch_tokens)


def train_sae(
    samples: Callable[[int], Iterable[Tensor]],
    d: int,
    spec: SaeTraining,
    *,
    checkpoint: Path,
    device: str | torch.device,
    progress: Callable[[int], None],
) -> SparseAutoencoder:
    """A TopK SAE trained on `spec.tokens` token passes, in batches of `spec.batch_tokens`.

    samples(epoch) yields the counted tokens of one sample after another, [n_i, d] of any float
    dtype, and the same ones at every call with the same epoch; epochs 0, 1, ... are drawn until
    there are enough tokens. `checkpoint` is a scratch folder that belongs to exactly these
    samples: after an interruption the same call continues from it, drawing and discarding what
    was consumed; it is removed on success, and started anew where it was made under other
    settings. `progress` is told of token passes newly done. The same inputs on the same machine
    give the same weights.

    Inputs are scaled to a typical centred norm of sqrt(d) and b_dec starts at their median; both
    are folded into the weights, so the SAE reads raw states. Its codes stay in the scaled unit.

    Raises RequestError where the tokens make no batch or k exceeds the latents, WorkError on an
    epoch without tokens, on states of another width or not finite, and when training diverges.
    """
    steps = spec.tokens // spec.batch_tokens
    if steps == 0:
        raise RequestError(
            f"SAE training: tokens = {spec.tokens} is less than batch_tokens = {spec.batch_tokens}"
        )
    if spec.k > spec.latents:
        raise RequestError(f"SAE training: k = {spec.k} exceeds latents = {spec.latents}")
    trainer = _trainer(d, spec, steps, device)
    _resume(trainer, checkpoint, {"d": d, **spec.model_dump(mode="json")})
    progress(trainer.n_training_samples)

    batches = shuffled_batches(
        _checked(samples, d), spec.batch_tokens, BUFFER_BATCHES * spec.batch_tokens, spec.seed
    )
    if trainer.n_training_steps == 0:
        batches = _set_scale(trainer, batches)
    save_every = math.ceil(steps / CHECKPOINTS)
    for batch in islice(batches, trainer.n_training_steps, steps):
        trainer.step(batch.float())
        _unit_decoder(trainer)
        trainer.n_training_steps += 1
        progress(len(batch))
        if trainer.n_training_steps % save_every == 0 and trainer.n_training_steps < steps:
            _save(trainer, checkpoint)

    try:
        sae = _canonical(trainer, spec)
    except WorkError as error:
        raise WorkError(
            f"SAE training diverged at learning_rate = {spec.learning_rate:g} ({error})"
        ) from error
    shutil.rmtree(checkpoint)
    return sae


def _trainer(d: int, spec: SaeTraining, steps: int, device: str | torch.device) -> Any:
    import torch

    try:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
    except ImportError as error:
        raise RequestError(
            "training an SAE needs the optional group 'sae-lens': "
            "pip install 'mona-select[sae-lens]'"
        ) from error

    # The default, chosen aloud: torch warns where nobody chose.
    torch.sparse.check_sparse_tensor_invariants.disable()
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=d,
                d_sae=spec.latents,
                k=spec.k,
                device=str(device),
                aux_loss_coefficient=AUX_LOSS,
                # Unit decoder rows (kept so below) make latents comparable, as rescaling by the
                # decoder's norm would, but leave the product with z sparse: a third faster.
                decoder_init_norm=1.0,
                rescale_acts_by_decoder_norm=False,
                use_sparse_activations=torch.device(device).type == "cpu",
            )
        )
    config = SAETrainerConfig(
        total_training_samples=steps * spec.batch_tokens,
        train_batch_size_samples=spec.batch_tokens,
        lr=spec.learning_rate,
        lr_end=spec.learning_rate,
        lr_warm_up_steps=int(steps * WARM_UP_SHARE),
        lr_decay_steps=int(steps * DECAY_SHARE),
        dead_feature_window=math.ceil(steps * DEAD_AFTER_SHARE),
        device=str(device),
    )
    # The trainer is stepped here, never `fit`, so it has no stream of its own.
    return SAETrainer(config, sae, data_provider=iter(()))


def _checked(samples: Callable[[int], Iterable[Tensor]], d: int) -> Iterator[Tensor]:
    """Samples of epoch after epoch without end, each of the right width and finite."""
    for epoch in count():
        tokens = 0
        for states in samples(epoch):
            if states.ndim != 2 or states.shape[1] != d:
                raise WorkError(f"SAE training: states of shape {list(states.shape)}, not [n, {d}]")
            if not bool(states.isfinite().all()):
                raise WorkError(f"SAE training: epoch {epoch} has states that are not finite")
            tokens += len(states)
            yield states
        if tokens == 0:
            raise WorkError(f"SAE training: epoch {epoch} has no tokens")


def _set_scale(trainer: Any, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Set input scale and initial b_dec from the first tokens; the same batches again."""
    import torch

    first = list(islice(batches, SCALE_BATCHES))
    states = torch.cat(first).to(trainer.sae.device, torch.float32)
    # Medians: attention sinks have ten and more times the norm of other tokens.
    centre = states.median(dim=0).values
    typical = float((states - centre).norm(dim=1).median())
    if typical == 0:
        raise WorkError("SAE training: the tokens do not vary")
    scale = trainer.sae.cfg.d_in**0.5 / typical
    trainer.activation_scaler.scaling_factor = scale
    trainer.sae.b_dec.data.copy_(centre * scale)
    return chain(first, batches)


def _unit_decoder(trainer: Any) -> None:
    """Rows of unit norm after every step (Gao et al. 2024, section 2.2)."""
    rows = trainer.sae.W_dec.data
    rows /= rows.norm(dim=1, keepdim=True).clamp(min=1e-8)


def _save(trainer: Any, checkpoint: Path) -> None:
    """A checkpoint under its final name only once it is whole; then older ones go."""
    older = list(checkpoint.glob(f"{STEP_PREFIX}*"))
    partial, final = "partial", f"{STEP_PREFIX}{trainer.n_training_steps:09d}"
    trainer.save_checkpoint(partial, base_path=checkpoint)
    (checkpoint / partial).rename(checkpoint / final)
    for folder in older:
        shutil.rmtree(folder)


def _resume(trainer: Any, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Load the newest checkpoint made under the same settings, if there is one."""
    path = checkpoint / SETTINGS_FILE
    text = json.dumps(settings, sort_keys=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    saved = sorted(checkpoint.glob(f"{STEP_PREFIX}*"))
    if saved:
        trainer.sae.load_weights_from_checkpoint(saved[-1])
        trainer.load_trainer_state(saved[-1])


def _canonical(trainer: Any, spec: SaeTraining) -> SparseAutoencoder:
    """The trained weights with the input scale folded in."""
    scale = trainer.activation_scaler.scaling_factor
    weights = {name: value.detach() for name, value in trainer.sae.state_dict().items()}
    return SparseAutoencoder(
        w_enc=weights["W_enc"] * scale,
        b_enc=weights["b_enc"],
        w_dec=weights["W_dec"] / scale,
        b_dec=weights["b_dec"] / scale,
        activation="topk",
        k=spec.k,
    )
