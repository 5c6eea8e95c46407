"""The held-out loss: how unlikely a model finds the gold answers of test rows.

Lower is better, and it needs no task metric, no generation and no harness: every target whose
test rows have answers has one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mona.errors import RequestError
from mona.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap
from mona.sample import sample_id
from mona.targets import TargetRow
from mona.tokens import Renderer, Supervised


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Of each row, in the order given: its id, the summed negative log-likelihood of its
    counted tokens (nats) and their number. sums: float64 [n]; tokens: int64 [n]."""

    sample_ids: Sequence[str]
    sums: np.ndarray
    tokens: np.ndarray

    def interval(self, seed: int) -> Interval:
        """Nats a token over all rows, with its 95 % bootstrap interval."""
        return bootstrap_ratio(self.sums, self.tokens, seed)

    def pairs_with(self, other: HeldOutLoss) -> bool:
        """Whether both are of the same rows and the same numbers of tokens."""
        return list(self.sample_ids) == list(other.sample_ids) and np.array_equal(
            self.tokens, other.tokens
        )

    def minus(self, other: HeldOutLoss, seed: int) -> Interval:
        """This loss less `other`'s, nats a token, on the same rows and tokens.

        ValueError where the rows or their tokens differ: then nothing is paired.
        """
        if not self.pairs_with(other):
            raise ValueError("losses of different rows or tokens are not paired")
        return paired_bootstrap(self.sums, other.sums, seed, self.tokens)


def held_out_loss(
    model: Any,
    renderer: Renderer,
    rows: Sequence[TargetRow],
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> HeldOutLoss:
    """The loss of the gold answers' tokens, given the rendered conversation up to each.

    Counted are the tokens that carry loss in fine-tuning (`Renderer.supervised`): the answer
    and what ends its turn. Rows without an answer are left out; so are those that the renderer
    sets aside or cuts off at max_length. model: a causal language model of transformers, on
    its device; its logits' softmax is taken in float32 whatever its dtype. batch_tokens: padded
    tokens a forward pass. Raises RequestError where no row is left.
    """
    from mona.encoder import plan_batches

    rows = [row for row in rows if row.messages[-1].role == "assistant"]
    rendered = renderer.supervised([row.messages for row in rows])
    kept = [
        (row, made.ids, made.learned)
        for row, made in zip(rows, rendered, strict=True)
        if isinstance(made, Supervised) and made.length == len(made.ids)
    ]
    if not kept:
        raise RequestError(
            "no test row has an answer that fits the template and max_length: nothing to "
            "measure the loss of"
        )
    sums = np.zeros(len(kept))
    for batch in plan_batches([len(ids) for _, ids, _ in kept], batch_tokens):
        sums[batch] = _batch_sums(model, [kept[i][1:] for i in batch])
        if progress is not None:
            progress(len(batch))
    return HeldOutLoss(
        [sample_id(row.messages) for row, _, _ in kept],
        sums,
        np.array([int(counted.sum()) for _, _, counted in kept], np.int64),
    )


def _batch_sums(model: Any, batch: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Summed losses of a batch of (ids, counted); float64 [batch]."""
    import torch
    from torch.nn import functional

    longest = max(len(ids) for ids, _ in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    counted = torch.zeros(len(batch), longest, dtype=torch.bool)
    for i, (ids, own) in enumerate(batch):
        tokens[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask[i, : len(ids)] = 1
        counted[i, : len(ids)] = torch.from_numpy(own)
    device = model.device
    chosen, following = counted[:, 1:].to(device), tokens[:, 1:].to(device)
    inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
    # A vocabulary is wide: where the model can, logits are made only at the positions that
    # count in some row, and only the counted ones become float32.
    kept = chosen.any(dim=0).nonzero().flatten()
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = kept
    with torch.inference_mode():
        logits = model(**inputs).logits
        if "logits_to_keep" not in inputs:
            logits = logits[:, kept]
        chosen = chosen[:, kept]
        losses = functional.cross_entropy(
            logits[chosen].float(), following[:, kept][chosen], reduction="none"
        )
    sums = np.zeros(len(batch))
    np.add.at(sums, np.nonzero(counted[:, 1:].numpy())[0], losses.double().cpu().numpy())
    return sums
