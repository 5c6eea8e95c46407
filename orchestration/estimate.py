"""What a run would cost, before it runs: samples, tokens, disk, memory and time of each step.

Figures come from the stored pool or its files' sizes, from the model's own config.json, and from
a probe of this machine's CPU. What can't be known yet is None in a row, and the plan says why,
once. Nothing is downloaded.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from assets.keys import SAE, SAE_CODES
from assets.raw_pool import pool_table
from mona.device import resolve_device, resolve_dtype
from mona.encoder_cost import Architecture
from mona.errors import MonaError
from mona.files import DataFile
from mona.spec import DatasetSpec, RecipeSpec
from orchestration.check import Scope, to_fetch
from orchestration.config import Config
from orchestration.planner import Choice, Standing, label, steps
from resources.asset_partition import AssetPartition
from resources.models import Models
from resources.sources import Sources
from resources.store import Store

FIGURES = ("samples", "tokens", "disk", "memory", "seconds")
# Of mixed instruction text and of its JSON; only for estimates.
_CHARACTERS_PER_TOKEN = 4.0
_TEMPLATE_TOKENS = 30
_CODE_BYTES_PER_NONZERO = 6
_NONZEROS_PER_SAMPLE = 1_000
_COMPRESSED = (".gz", ".zst", ".parquet")
_COMPRESSION = 4
# Forward, backward and its recomputation of activations, in forward passes.
_TRAINING_PASSES = 3


@dataclass
class Plan:
    """`steps`: a row an asset partition that is not fresh, in the order of the run: asset,
    status, why, kind, and FIGURES (bytes, seconds; None where unknown). A kind is 'estimated',
    'small' (too small to count) or 'measured' (only the step itself can tell). `fetch`: what would
    be downloaded. `unknown`: why figures are missing."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    fetch: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def estimate(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    resources: dict[str, Any],
    choice: Choice,
) -> Plan:
    """The plan of a choice."""
    standing = Standing(instance, definitions.resolve_asset_graph(), config)
    costs = _Costs(config, resources["store"], resources["shelf"], resources["sources"])
    plan = Plan()
    for step in steps(config, choice):
        for key in step.keys:
            state = standing.state(key, step.partition)
            if state.status != "fresh":
                row = {
                    "asset": label(key, step.partition),
                    "status": state.status,
                    "why": state.why,
                    **costs.of(key, step.partition),
                }
                plan.steps.append(row)
    if plan.steps:
        plan.fetch = to_fetch(_scope(choice, config, resources))
    plan.unknown = list(costs.reasons)
    return plan


def _scope(choice: Choice, config: Config, resources: dict[str, Any]) -> Scope:
    read = [d for name in choice.models for d in config.models[name].sae.sample_datasets]
    datasets = tuple(dict.fromkeys([*choice.datasets, *read]))
    sources, shelf = resources["sources"], resources["shelf"]
    return Scope(config, sources, shelf, datasets, choice.models, choice.targets, choice.recipes)


class _Costs:
    """Figures of one asset partition after another; `reasons` collects why some are missing."""

    def __init__(self, config: Config, store: Store, shelf: Models, sources: Sources) -> None:
        self._config, self._store, self._shelf, self._sources = config, store, shelf, sources
        self._device = resolve_device(config.engine.device)
        self._pools: dict[str, tuple[int | None, int | None]] = {}
        self._models: dict[str, Architecture | None] = {}
        self.reasons: dict[str, None] = {}

    def of(self, key: dg.AssetKey, partition: str | None) -> dict[str, Any]:
        """`kind` and FIGURES."""
        found: dict[str, Any] = dict.fromkeys(FIGURES)
        of = AssetPartition.of(key.path, partition)
        if of.kind == "evaluation":
            return {"kind": "measured", **found}
        if of.kind not in ("raw_pool", "sae", "activations", "sae_codes", "finetune"):
            return {"kind": "small", **found}
        if of.dataset is not None:
            found["samples"], found["tokens"] = self._pool(of.dataset)
        if of.model is None:
            if found["tokens"] is not None:
                found["disk"] = int(found["tokens"] * _CHARACTERS_PER_TOKEN)
        elif of.recipe is not None:
            self._finetune(found, self._config.recipes[of.recipe], of.model)
        else:
            self._encoding(found, key, of.model)
        return {"kind": "estimated", **found}

    def _encoding(self, found: dict[str, Any], key: dg.AssetKey, name: str) -> None:
        model = self._config.models[name]
        if key == SAE:
            found["tokens"] = (
                model.sae.train.tokens if model.sae.train else model.sae.quality_tokens
            )
        shape = self._architecture(name)
        if shape is None:
            return
        item = 2 if resolve_dtype(model.dtype, self._device) == "bfloat16" else 4
        found["memory"] = shape.bytes(model.layer, item)
        if found["samples"] is not None:
            if key == SAE_CODES:
                found["disk"] = found["samples"] * _NONZEROS_PER_SAMPLE * _CODE_BYTES_PER_NONZERO
            else:
                tokens = min(found["tokens"] * shape.width * item, model.token_cache_gb * 1e9)
                views = 2 * (2 * shape.width + shape.mlp_width)
                found["disk"] = int(found["samples"] * views + tokens)
        # One forward pass makes activations and codes: it is counted with the activations.
        if found["tokens"] is not None:
            found["seconds"] = (
                0.0
                if key == SAE_CODES
                else shape.seconds(found["tokens"], model.layer, self._device)
            )

    def _finetune(self, found: dict[str, Any], recipe: RecipeSpec, name: str) -> None:
        training, budget = recipe.finetune, recipe.budget
        samples, tokens = found["samples"], found["tokens"]
        assert training is not None
        if budget is not None and budget.tokens is not None:
            found["samples"], tokens = None, budget.tokens
        elif budget is not None and samples:
            share = budget.share or (budget.count or 0) / samples
            found["samples"], tokens = max(1, int(samples * share)), int((tokens or 0) * share)
        found["tokens"] = None if tokens is None else int(tokens * training.epochs)
        shape = self._architecture(name)
        if shape is None or training.base is not None:
            return
        item = 2 if resolve_dtype(training.dtype, self._device) == "bfloat16" else 4
        # All weights: gradients and Adam's two moments beside them. Adapters are small.
        weights = shape.bytes(shape.blocks, item)
        found["memory"] = weights if training.lora is not None else 4 * weights
        found["disk"] = weights if training.lora is None else 0
        if found["tokens"] is not None:
            once = shape.seconds(found["tokens"], shape.blocks, self._device)
            found["seconds"] = _TRAINING_PASSES * once

    def _pool(self, dataset: str) -> tuple[int | None, int | None]:
        """(samples, tokens) of a pool as it is stored, else as its files let one guess."""
        if dataset not in self._pools:
            if self._store.exists(pool_table(dataset)):
                self._pools[dataset] = _stored_size(self._store, dataset)
            else:
                self._pools[dataset] = self._guess(dataset, self._config.datasets[dataset])
        return self._pools[dataset]

    def _guess(self, dataset: str, spec: DatasetSpec) -> tuple[int | None, int | None]:
        drawn = spec.subsample
        if drawn is not None and drawn.max_tokens is not None:
            return drawn.rows, drawn.rows * drawn.max_tokens
        if drawn is not None and drawn.max_chars is not None:
            longest = int(drawn.max_chars / _CHARACTERS_PER_TOKEN) + _TEMPLATE_TOKENS
            return drawn.rows, drawn.rows * longest
        characters = 0
        for source in spec.sources:
            where = f"datasets.{dataset}.sources.{source.name}"
            try:
                files = self._sources.files_at_hand(source, where)
            except MonaError:
                files = []
            if not files:
                self.reasons[f"the rows of {where} are not on this machine yet"] = None
                return (drawn.rows if drawn is not None else None), None
            for file in files:
                packed = _COMPRESSION if file.filename.endswith(_COMPRESSED) else 1
                characters += packed * _size(file)
        return (drawn.rows if drawn is not None else None), int(characters / _CHARACTERS_PER_TOKEN)

    def _architecture(self, name: str) -> Architecture | None:
        if name not in self._models:
            self._models[name] = self._read_architecture(name)
        return self._models[name]

    def _read_architecture(self, name: str) -> Architecture | None:
        given = self._config.models[name].language_model
        try:
            folder = self._shelf.folder_at_hand(name, given)
            if folder is None:
                kept = given.repo or given.public_name
                self.reasons[f"models.{name}: {kept} is not on this machine yet"] = None
                return None
            return Architecture.from_config(
                json.loads((folder / "config.json").read_text(encoding="utf-8"))
            )
        except (MonaError, OSError, ValueError, KeyError, TypeError) as error:
            self.reasons[f"models.{name}: its config.json says too little ({error})"] = None
            return None


def _size(file: DataFile) -> int:
    if file.member is None:
        return file.path.stat().st_size
    with zipfile.ZipFile(file.path) as archive:
        return archive.getinfo(file.member).file_size


def _stored_size(store: Store, dataset: str) -> tuple[int, int]:
    samples, characters = 0, 0
    for batch in store.scan(pool_table(dataset), ["n_chars"]):
        samples += len(batch)
        characters += int(pc.sum(batch.column(0)).as_py() or 0)
    return samples, int(characters / _CHARACTERS_PER_TOKEN) + samples * _TEMPLATE_TOKENS


# --- shown


def shown_rows(plan: Plan) -> list[dict[str, Any]]:
    """The steps of which something is known, as text."""
    return [
        {
            **row,
            "samples": _or_dash(row["samples"], "{:,}"),
            "tokens": _or_dash(row["tokens"], "{:,}"),
            "disk": _or_dash(row["disk"], "{:,.0f} MB", 1e6),
            "memory": _or_dash(row["memory"], "{:,.2f} GB", 1e9),
            "time": "with activations"
            if row["seconds"] == 0
            else "-"
            if row["seconds"] is None
            else duration(row["seconds"]),
        }
        for row in plan.steps
        if row["kind"] == "estimated" and any(row[figure] is not None for figure in FIGURES)
    ]


def notes(plan: Plan) -> list[str]:
    """What a table of the steps leaves out, a line each."""
    found = []
    estimated = [row for row in plan.steps if row["kind"] == "estimated"]
    blank = [row for row in estimated if all(row[figure] is None for figure in FIGURES)]
    small = [row for row in plan.steps if row["kind"] == "small"]
    measured = [row for row in plan.steps if row["kind"] == "measured"]
    for rows, says in (
        (small, "some seconds to a minute each"),
        (measured, "as long as the model takes to answer; not estimated"),
        (blank, "no figure yet"),
    ):
        if rows:
            found.append(f"{_kinds(rows)}: {says}")
    if plan.unknown:
        found.append("unknown (-) because: " + "; ".join(plan.unknown))
    if plan.fetch:
        found.append("would be fetched: " + "; ".join(plan.fetch))
    known = [row["seconds"] for row in estimated if row["seconds"]]
    if known:
        found.append(f"in all {duration(sum(known))} of what is known, by a probe of this machine")
    return found


def _kinds(rows: list[dict[str, Any]]) -> str:
    counts = Counter(AssetPartition.parse(row["asset"]).kind for row in rows)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _or_dash(value: float | None, pattern: str, unit: float = 1) -> str:
    return "-" if value is None else pattern.format(value if unit == 1 else value / unit)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5_400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3_600:.1f} h"
