"""Encoding speed: texts to committed rows, against a plain loop on the same texts.

    python -m bench.encoding [--rounds 4] [--rows 100]

Ours is what a run does: render, forward to the layer, SAE codes of SmolLM2 with
4,608 latents, commits to Lance. The plain loop is what one writes first: float32, the whole
model with its LM head, batches of 8 in file order, padded, every hidden state returned; no
SAE, nothing stored. The two take the same rows in turn, so that a busy machine slows both.
Also printed: padding, and the share of the rate at which this machine multiplies matrices of
the model's shapes, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mona.checkpoints import quiet_transformers
from mona.encoder import Encoder, plan_batches
from mona.pool import POOL_SCHEMA
from mona.sae import SparseAutoencoder
from mona.sample import Message, sample_id, to_records
from mona.spec import ModelSpec
from mona.tokens import Tokenised
from orchestration.config import load_config
from orchestration.definitions import build_resources
from resources.encoding_tables import pool_population
from resources.encodings import CodesOf, Encodings
from resources.engine import Engine
from resources.store import Store

ROOT = Path(__file__).resolve().parent.parent
POOLS = ROOT.parent / "shared" / "data" / "pools"
TEXTS = (POOLS / "alpaca/alpaca_data.json", POOLS / "code/code_alpaca_2k.json")
PLAIN_BATCH = 8
LATENTS, K = 4608, 32


def conversations(count: int) -> list[list[Message]]:
    """Seeded rows of TEXTS, as many of each; without them invented texts of like lengths."""
    random = np.random.default_rng(0)
    if not all(path.is_file() for path in TEXTS):
        lengths = np.minimum(random.lognormal(4.3, 0.9, count), 2000).astype(int) + 4
        return [
            [
                Message("user", f"{i}: " + " ".join(["which", "river"] * (n // 4))),
                Message("assistant", " ".join(["the", "long", "one"] * (n // 6 + 1))),
            ]
            for i, n in enumerate(lengths.tolist())
        ]
    made = []
    for path in TEXTS:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for i in random.choice(len(rows), count // len(TEXTS), replace=False).tolist():
            question = "\n".join(filter(None, [rows[i]["instruction"], rows[i].get("input")]))
            made.append(
                [Message("user", question), Message("assistant", rows[i].get("output") or "")]
            )
    return [made[i] for i in random.permutation(len(made))]


def random_sae(width: int) -> SparseAutoencoder:
    """TopK costs the same whatever the weights are."""
    generator = torch.Generator().manual_seed(0)
    w_dec = torch.randn(LATENTS, width, generator=generator)
    return SparseAutoencoder(
        w_enc=w_dec.T.contiguous() / width,
        b_enc=torch.zeros(LATENTS),
        w_dec=w_dec,
        b_dec=torch.zeros(width),
        activation="topk",
        k=K,
    )


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
    linears = [m for m in encoder.blocks[0].modules() if isinstance(m, torch.nn.Linear)]
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


def pool_of(store: Store, name: str, texts: Sequence[Sequence[Message]]) -> None:
    """The pool table of one round's texts."""
    rows = [
        {
            "sample_id": sample_id(messages),
            "messages": to_records(messages),
            "origins": [],
            "n_chars": sum(len(message.content) for message in messages),
        }
        for messages in texts
    ]
    table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    store.replace(f"pool.{name}", table.to_batches(), POOL_SCHEMA)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=100, help="rows a round")
    given = parser.parse_args()

    from transformers import AutoModelForCausalLM

    quiet_transformers()
    config = load_config(ROOT / "examples" / "demo.yaml")
    shelf = build_resources(config)["shelf"]
    entry: ModelSpec = config.models["smollm2"]
    resolved = shelf.resolve("smollm2", entry)
    encoder: Encoder = shelf.encoder(resolved)
    model = AutoModelForCausalLM.from_pretrained(resolved.folder, dtype=torch.float32)
    model.eval().to(encoder.device)
    sae = random_sae(encoder.width)
    engine = Engine(device=config.engine.device)

    texts = conversations(given.rounds * given.rows)
    rows = [encoder.renderer.render(text) for text in texts]
    gemm = [gemm_rate(encoder, engine.forward_tokens, seconds=2.0)]
    spent = {"plain": 0.0, "ours": 0.0}
    plain_forward(model, rows[:PLAIN_BATCH], entry.layer)
    encoder.forward(rows[:PLAIN_BATCH])
    with tempfile.TemporaryDirectory() as root:
        store = Store(root=root, home=root)
        for turn in range(given.rounds):
            start = turn * given.rows
            name = f"round{turn}"
            pool_of(store, name, texts[start : start + given.rows])

            began = time.perf_counter()
            population = pool_population(name)
            samples = store.newest(f"pool.{name}")
            encodings = Encodings(store, engine, population, samples, "bench", lambda: encoder)
            table = population.codes_table("bench", "bench")
            report = encodings.sync(CodesOf(table, "bench", sae, None, "mean"))
            spent["ours"] += time.perf_counter() - began
            assert report.forwarded == store.count(table)

            began = time.perf_counter()
            for first in range(start, start + given.rows, PLAIN_BATCH):
                batch = rows[first : min(first + PLAIN_BATCH, start + given.rows)]
                plain_forward(model, batch, entry.layer)
            spent["plain"] += time.perf_counter() - began
    gemm.append(gemm_rate(encoder, engine.forward_tokens, seconds=2.0))

    lengths = [len(row.ids) for row in rows]
    tokens = sum(lengths)
    ours, plain = tokens / spent["ours"], tokens / spent["plain"]
    in_order = [range(len(rows))[i : i + PLAIN_BATCH] for i in range(0, len(rows), PLAIN_BATCH)]
    planned = plan_batches(lengths, engine.forward_tokens)
    weights = sum(
        module.weight.numel()
        for module in encoder.blocks.modules()
        if isinstance(module, torch.nn.Linear)
    ) + (encoder.width * LATENTS)
    achieved = 2 * weights * ours / 1e9
    source = "invented" if not TEXTS[0].is_file() else ", ".join(path.name for path in TEXTS)
    print(f"texts        {len(rows)} of {source}; mean {tokens / len(rows):.0f} tokens")
    print(f"machine      {encoder.device}, {encoder.dtype}, {torch.get_num_threads()} threads")
    print(
        f"plain loop   {plain:,.0f} tokens/s, {1 - tokens / padded_tokens(rows, in_order):.1%}"
        " of slots are padding"
    )
    print(
        f"ours         {ours:,.0f} tokens/s to committed rows,"
        f" {1 - tokens / padded_tokens(rows, planned):.1%} of slots are padding"
    )
    print(f"ratio        {ours / plain:.2f}")
    print(
        f"GEMM rate    {gemm[0]:.0f} before, {gemm[1]:.0f} GFLOP/s after; linear layers and SAE "
        f"ran at {achieved:.0f} = {achieved / np.mean(gemm):.0%} of it"
    )


if __name__ == "__main__":
    main()
