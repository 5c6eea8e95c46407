"""Encoding speed: a plain loop against the encoder on the same texts, dtype and machine.

`python -m bench.encoding --model FOLDER [--texts FILE]...`

The plain loop is what one writes first: the whole model with its LM head, batches of 8 in
file order, padded, every hidden state returned. Both sides run in turn, batch by batch, so
that a busy machine slows both. Also printed: padding waste, and the share of the rate at
which this machine multiplies matrices of the model's shapes, measured in the same run.
`compare` takes any function of a batch, so that what follows the encoder (SAE, store) can
be timed with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mona.checkpoints import quiet_transformers
from mona.device import resolve_device, resolve_dtype
from mona.encoder import Encoder, plan_batches
from mona.sample import Message
from mona.spec import TokenPolicy
from mona.tokens import Tokenised

PLAIN_BATCH = 8
POOLS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "pools"


def conversations(files: Sequence[Path], seed: int, count: int) -> list[list[Message]]:
    """`count` seeded rows of JSON arrays in the Alpaca format, the same number of each file;
    without files, invented texts with log-normal lengths like theirs."""
    random = np.random.default_rng(seed)
    if not files:
        lengths = np.minimum(random.lognormal(4.3, 0.9, count), 2000).astype(int) + 4
        return [
            [
                Message("user", " ".join(["which", "river"] * (n // 4))),
                Message("assistant", " ".join(["the", "long", "one"] * (n // 6 + 1))),
            ]
            for n in lengths.tolist()
        ]
    made = []
    for path in files:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for i in random.choice(len(rows), count // len(files), replace=False).tolist():
            question = "\n".join(filter(None, [rows[i]["instruction"], rows[i].get("input")]))
            made.append(
                [Message("user", question), Message("assistant", rows[i].get("output") or "")]
            )
    return [made[i] for i in random.permutation(len(made))]


def plain_forward(model: Any, batch: Sequence[Tokenised], layer: int) -> None:
    """One padded batch through the whole model."""
    ids = np.zeros((len(batch), max(len(row.ids) for row in batch)), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = row.ids
        mask[i, : len(row.ids)] = 1
    with torch.no_grad():
        made = model(
            input_ids=torch.from_numpy(ids).to(model.device),
            attention_mask=torch.from_numpy(mask).to(model.device),
            output_hidden_states=True,
        )
        made.hidden_states[layer].sum().item()


def padded_tokens(rows: Sequence[Tokenised], batches: Sequence[Sequence[int]]) -> int:
    """Token slots, padding included."""
    return sum(len(batch) * max(len(rows[i].ids) for i in batch) for batch in batches)


def gemm_rate(encoder: Encoder, tokens: int, seconds: float) -> float:
    """GFLOP/s of this machine on the linear layers of one block, `tokens` rows at a time."""
    linears = [m for m in encoder.backbone.layers[0].modules() if isinstance(m, torch.nn.Linear)]
    inputs = [
        torch.randn(tokens, m.in_features, dtype=encoder.dtype, device=encoder.device)
        for m in linears
    ]
    operations = sum(2 * tokens * m.in_features * m.out_features for m in linears)
    done, start = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < seconds:
            for linear, x in zip(linears, inputs, strict=True):
                linear(x)
            if encoder.device.type == "cuda":
                torch.cuda.synchronize()
            done += operations
    return done / (time.perf_counter() - start) / 1e9


def compare(
    sides: Sequence[tuple[Callable[[Sequence[Tokenised]], object], Sequence[Sequence[int]]]],
    rows: Sequence[Tokenised],
    seconds: float,
) -> list[float]:
    """Tokens a second of each (function, batches of row indices), batch by batch in turn until
    `seconds` have passed or a side has no batch left. Padding is no token."""
    spent = [0.0] * len(sides)
    tokens = [0] * len(sides)
    begin = time.perf_counter()
    for turn in range(min(len(batches) for _, batches in sides)):
        for side, (run, batches) in enumerate(sides):
            batch = [rows[i] for i in batches[turn]]
            before = time.perf_counter()
            run(batch)
            spent[side] += time.perf_counter() - before
            tokens[side] += sum(len(row.ids) for row in batch)
        if time.perf_counter() - begin > seconds:
            break
    return [n / time_spent for n, time_spent in zip(tokens, spent, strict=True)]


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(".cache/smollm2"),
        help="model folder; the default is the one the tests prepare",
    )
    parser.add_argument("--texts", type=Path, action="append", help="JSON arrays, Alpaca format")
    parser.add_argument("--layer", type=int, default=-2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    if not given.model.is_dir():
        parser.error(f"{given.model}: no such model folder")

    from transformers import AutoModelForCausalLM

    quiet_transformers()
    standing = [POOLS / "alpaca/alpaca_data.json", POOLS / "code/code_alpaca_2k.json"]
    files = given.texts or [path for path in standing if path.is_file()]
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    encoder = Encoder.load(
        given.model,
        layer=given.layer,
        dtype=dtype,
        device=device,
        template="chat",
        policy=TokenPolicy(),
        max_length=given.max_length,
    )
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, dtype))
    model.eval().to(device)

    texts = conversations(files, seed=0, count=4000)
    begin = time.perf_counter()
    rows = encoder.renderer.render_batch(texts)
    rendering = len(rows) / (time.perf_counter() - begin)

    def plain(batch: Sequence[Tokenised]) -> None:
        plain_forward(model, batch, given.layer)

    def ours(batch: Sequence[Tokenised]) -> None:
        encoder.forward(batch).states.sum().item()

    in_order = [range(i, min(i + PLAIN_BATCH, len(rows))) for i in range(0, len(rows), PLAIN_BATCH)]
    planned = plan_batches([len(row.ids) for row in rows], given.batch_tokens)
    # Longest first is the plan's order; in a random one any share of it has all lengths.
    shuffled = [planned[i] for i in np.random.default_rng(0).permutation(len(planned))]
    for warm_up in (plain, ours):
        warm_up(rows[:PLAIN_BATCH])
    gemm = [gemm_rate(encoder, given.batch_tokens, seconds=2.0)]
    plain_rate, our_rate = compare([(plain, in_order), (ours, shuffled)], rows, given.seconds)
    gemm.append(gemm_rate(encoder, given.batch_tokens, seconds=2.0))

    real = sum(len(row.ids) for row in rows)
    weights = sum(
        module.weight.numel()
        for module in encoder.backbone.layers.modules()
        if isinstance(module, torch.nn.Linear)
    )
    achieved = 2 * weights * our_rate / 1e9
    print(f"texts        {'invented lengths' if not files else [path.name for path in files]}")
    print(f"machine      {device}, {dtype}, {torch.get_num_threads()} threads")
    print(f"lengths      mean {real / len(rows):.0f}, longest {max(len(r.ids) for r in rows)}")
    print(f"rendering    {rendering:,.0f} rows/s")
    print(f"plain loop   {plain_rate:,.0f} tokens/s")
    print(f"encoder      {our_rate:,.0f} tokens/s, {our_rate / plain_rate:.2f} x the plain loop")
    print(
        f"padding      plain {1 - real / padded_tokens(rows, in_order):.1%}, "
        f"encoder {1 - real / padded_tokens(rows, planned):.1%} of slots"
    )
    print(
        f"GEMM rate    {gemm[0]:.0f} before, {gemm[1]:.0f} GFLOP/s after; the encoder's linear "
        f"layers ran at {achieved:.0f} = {achieved / np.mean(gemm):.0%} of it"
    )


if __name__ == "__main__":
    main()
