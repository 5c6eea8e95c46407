"""Training a TopK SAE on any stream of token activations, resumably.

One step is `mona.sae_trainer`; here are the order of tokens, the input scale and checkpoints.
Which tokens to train on is the caller's choice.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.errors import WorkError
from mona.sae import SparseAutoencoder
from mona.sae_trainer import TopKTrainer
from mona.spec import SaeTraining

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHECKPOINTS = 20  # a run; each holds three copies of the weights, Adam's moments included
SETTINGS_FILE = "settings.json"
STEP_PREFIX = "step_"
BUFFER_BATCHES = 32  # tokens are mixed over this many batches
SCALE_BATCHES = 8  # the first ones, which set the input scale


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

    Raises WorkError on an epoch without tokens, on states of another width or not finite, and
    when training diverges.
    """
    steps = spec.tokens // spec.batch_tokens
    trainer = TopKTrainer(d, spec, steps, device)
    _resume(trainer, checkpoint, {"trainer": 2, "d": d, **spec.model_dump(mode="json")})
    progress(trainer.steps_done * spec.batch_tokens)

    batches = shuffled_batches(
        _checked(samples, d), spec.batch_tokens, BUFFER_BATCHES * spec.batch_tokens, spec.seed
    )
    if trainer.steps_done == 0:
        batches = _set_scale(trainer, batches)
    save_every = math.ceil(steps / CHECKPOINTS)
    for batch in islice(batches, trainer.steps_done, steps):
        trainer.step(batch)
        progress(len(batch))
        if trainer.steps_done % save_every == 0 and trainer.steps_done < steps:
            _save(trainer, checkpoint)

    try:
        sae = _canonical(trainer, spec)
    except WorkError as error:
        raise WorkError(
            f"SAE training diverged at learning_rate = {spec.learning_rate:g} ({error})"
        ) from error
    shutil.rmtree(checkpoint)
    return sae


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


def _set_scale(trainer: TopKTrainer, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Set input scale and initial b_dec from the first tokens; the same batches again."""
    import torch

    first = list(islice(batches, SCALE_BATCHES))
    b_dec = trainer.weights["b_dec"]
    states = torch.cat(first).to(b_dec.device, torch.float32)
    # Medians: attention sinks have ten and more times the norm of other tokens.
    centre = states.median(dim=0).values
    typical = float((states - centre).norm(dim=1).median())
    if typical == 0:
        raise WorkError("SAE training: the tokens do not vary")
    trainer.scale = len(centre) ** 0.5 / typical
    b_dec.data.copy_(centre * trainer.scale)
    return chain(first, batches)


def _save(trainer: TopKTrainer, checkpoint: Path) -> None:
    """A checkpoint under its final name only once it is whole; then older ones go."""
    older = list(checkpoint.glob(f"{STEP_PREFIX}*"))
    partial, final = "partial", f"{STEP_PREFIX}{trainer.steps_done:09d}"
    shutil.rmtree(checkpoint / partial, ignore_errors=True)
    trainer.save(checkpoint / partial)
    (checkpoint / partial).rename(checkpoint / final)
    for folder in older:
        shutil.rmtree(folder)


def _resume(trainer: TopKTrainer, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Load the newest checkpoint made under the same settings, if there is one."""
    path = checkpoint / SETTINGS_FILE
    text = json.dumps(settings, sort_keys=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    saved = sorted(checkpoint.glob(f"{STEP_PREFIX}*"))
    if saved:
        trainer.load(saved[-1])


def _canonical(trainer: TopKTrainer, spec: SaeTraining) -> SparseAutoencoder:
    """The trained weights with the input scale folded in."""
    w_enc, b_enc, w_dec, b_dec = (value.detach() for value in trainer.weights.values())
    return SparseAutoencoder(
        w_enc=w_enc * trainer.scale,
        b_enc=b_enc,
        w_dec=w_dec / trainer.scale,
        b_dec=b_dec / trainer.scale,
        activation="topk",
        k=spec.k,
    )
