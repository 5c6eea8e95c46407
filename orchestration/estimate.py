"""What a run would cost, before it runs: samples, tokens, disk and time of each step.

Figures come from the stored pool and the model's own config.json where they are at hand;
what can't be known without work or a hub is shown as unknown.
"""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from assets.keys import ACTIVATIONS, SAE, SAE_CODES
from assets.raw_pool import pool_table
from mona.device import resolve_device
from mona.encoder_cost import Architecture
from mona.errors import MonaError
from orchestration.config import Config
from orchestration.planner import Choice, Standing, label, steps
from resources.models import Models
from resources.store import Store

UNKNOWN = "unknown"
# Characters a token in mixed instruction text; only for estimates.
_CHARACTERS_PER_TOKEN = 4.0
_CODE_BYTES_PER_NONZERO = 6
_NONZEROS_PER_SAMPLE = 1_000


def estimate(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    resources: dict[str, Any],
    choice: Choice,
) -> list[dict[str, Any]]:
    """A row a planned asset partition that is not fresh, in the order of the run."""
    standing = Standing(instance, definitions.resolve_asset_graph(), config)
    store, shelf = resources["store"], resources["shelf"]
    rows = []
    for step in steps(config, choice):
        for key in step.keys:
            state = standing.state(key, step.partition)
            if state.status == "fresh":
                continue
            rows.append(
                {
                    "asset": label(key, step.partition),
                    "status": state.status,
                    "why": state.why,
                    **_cost(config, store, shelf, key, step.partition, instance),
                }
            )
    return rows


def _cost(
    config: Config,
    store: Store,
    shelf: Models,
    key: dg.AssetKey,
    partition: str | None,
    instance: dg.DagsterInstance,
) -> dict[str, Any]:
    if key not in (ACTIVATIONS, SAE_CODES, SAE) or partition is None:
        return {"samples": "", "tokens": "", "disk": "", "time": ""}
    halves = partition.split("|")
    model_name = halves[-1]
    model = config.models[model_name]
    if key == SAE:
        tokens: int | None = model.sae.train.tokens if model.sae.train else model.sae.quality_tokens
        samples: int | None = None
    else:
        samples, tokens = _pool_size(store, halves[0])
    architecture = _architecture(shelf, model_name, config)
    disk: int | None = None
    if samples is not None and architecture is not None:
        disk = samples * (
            _NONZEROS_PER_SAMPLE * _CODE_BYTES_PER_NONZERO
            if key == SAE_CODES
            else 2 * (2 * architecture.width + architecture.mlp_width)
        )
    seconds = None
    if tokens is not None and architecture is not None:
        device = resolve_device(config.engine.device)
        seconds = architecture.seconds(tokens, model.layer, device)
    return {
        "samples": UNKNOWN if samples is None and key != SAE else samples or "",
        "tokens": UNKNOWN if tokens is None else f"{tokens:,}",
        "disk": UNKNOWN if disk is None else f"{disk / 1e6:,.0f} MB",
        # One forward pass makes both: its time is counted with the activations.
        "time": "with activations"
        if key == SAE_CODES
        else UNKNOWN
        if seconds is None
        else _duration(seconds),
    }


def _pool_size(store: Store, dataset: str) -> tuple[int | None, int | None]:
    if not store.exists(pool_table(dataset)):
        return None, None
    samples, characters = 0, 0
    for batch in store.scan(pool_table(dataset), ["n_chars"]):
        samples += len(batch)
        characters += int(pc.sum(batch.column(0)).as_py() or 0)
    return samples, int(characters / _CHARACTERS_PER_TOKEN)


def _architecture(shelf: Models, name: str, config: Config) -> Architecture | None:
    given = config.models[name].language_model
    if given.repo is not None:
        return None
    try:
        folder = shelf.folder(name, given)
    except MonaError:
        return None
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Architecture.from_config(settings)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5_400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3_600:.1f} h"
