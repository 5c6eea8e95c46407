"""`<target>/<recipe>/finetune` and `controls/<recipe>/finetune` [dataset x model]: the model
tuned on one subset, with the record of what went in.

A tuned model lies under home as finetunes/<owner>/<recipe>/<dataset>.<model>/<name>, the name
being that of its inputs; it appears there by one rename, card and provenance included.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.describe import picture, provenance, table
from assets.entries import entries_read
from assets.keys import (
    RAW_POOL,
    Partitions,
    by_model,
    dataset_and_model,
    finetune,
    label,
    model_entry,
    selection,
    subsets,
)
from assets.pools import GPU_POOL
from assets.retries import retried
from assets.subset import origin_counts, read_subset
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.sample import from_records
from mona.spec import LanguageModel, ModelSpec, RecipeSpec
from mona.tokens import RENDERING_VERSION
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Record, Records, folder_files
from resources.store import Store

PROVENANCE_FILE = "provenance.json"
# How a run is watched and resumed has no part in what it makes.
_WITHOUT_EFFECT = {"auto", "checkpoint_steps"}


def tuned_folder(
    store: Store, owner: str, recipe: str, dataset: str, model: str, name: str
) -> Path:
    """Where one tuned model lies."""
    return store.folder("finetunes", owner, recipe, f"{dataset}.{model}") / name


def base_model(recipe: RecipeSpec, model: ModelSpec) -> LanguageModel:
    """What is tuned: the recipe's own base, else the model that encoded."""
    given = recipe.finetune.base if recipe.finetune is not None else None
    return given or model.language_model


def build_finetunes(
    targets: Sequence[str],
    recipes: Mapping[str, RecipeSpec],
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> list[dg.AssetsDefinition]:
    """One asset for each stored subset whose recipe trains."""
    return [
        _finetune(owner, name, recipes[name], models, partitions)
        for owner, name in subsets(targets, recipes)
        if recipes[name].finetune is not None
    ]


def _finetune(
    owner: str,
    recipe_name: str,
    recipe: RecipeSpec,
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> dg.AssetsDefinition:
    spec = recipe.finetune
    assert spec is not None
    key, subset = finetune(owner, recipe_name), selection(owner, recipe_name)
    settings = spec.model_dump(mode="json", exclude=_WITHOUT_EFFECT)

    @dg.asset(
        key=key,
        partitions_def=partitions.dataset_model,
        deps=[dg.AssetDep(subset), by_model(model_entry("weights"))],
        group_name=owner,
        code_version=fingerprint(code="1", finetune=settings, rendering=RENDERING_VERSION),
        pool=GPU_POOL,
        description=f"The model tuned on what '{recipe_name}' chose, and what went into it.",
    )
    @retried
    def tune(
        context: dg.AssetExecutionContext,
        shelf: Models,
        store: Store,
        engine: Engine,
        records: Records,
    ) -> dg.MaterializeResult[Any]:
        from mona.finetune import FinetuneJob, launch, planned_steps, write_samples
        from mona.plots import loss_curve
        from mona.tuned import tuned_digest

        dataset, model_name = dataset_and_model(context)
        model = models[model_name]
        inputs = records.read_at([label(subset, context.partition_key)])
        entries = entries_read(shelf, model_name, model, "weights")
        given = base_model(recipe, model)
        base = shelf.folder(model_name, given)
        base_digest = shelf.weights_digest(model_name, given)
        (digest,) = inputs.values()
        subset_record = records.get(digest)
        rows = read_subset(store, records, subset_record, dataset)
        if any(row["messages"] is None for row in rows):
            raise WorkError(f"{subset_record.asset} holds withdrawn samples: select anew first")
        conversations = [from_records(row.pop("messages")) for row in rows]
        name = fingerprint(
            chosen=subset_record.data_version,
            subset=digest,
            base=base_digest,
            settings=settings,
            rendering=RENDERING_VERSION,
            device=engine.resolved_device,
            processes=engine.processes,
        )
        folder = tuned_folder(store, owner, recipe_name, dataset, model_name, name)
        lock = f"finetune.{owner}.{recipe_name}.{dataset}.{model_name}"
        steps = planned_steps(len(conversations), spec)
        with (
            store.lock(lock),
            progress_bar(f"tuning {model_name} on {owner}/{recipe_name}", steps, "steps") as bar,
        ):
            staging = store.folder("scratch", "tuned") / name
            samples = store.folder("scratch", "tuned") / f"{name}.jsonl"
            write_samples(conversations, samples)
            job = FinetuneJob(
                samples=samples,
                base=base,
                spec=spec,
                out=folder if folder.exists() else staging,
                scratch=store.folder("scratch") / f"finetune.{name}",
                device=engine.resolved_device,
            )
            report = launch(job, engine.processes, bar)
            samples.unlink()
            if not folder.exists():
                facts = {
                    "subset": {
                        "asset": subset_record.asset,
                        "record": digest,
                        "rows": [
                            {key: row[key] for key in ("rank", "sample_id", "score", "origins")}
                            for row in rows
                        ],
                    },
                    "records": sorted(records.closure([digest])),
                    "base": {
                        "model": given.model_dump(mode="json", exclude={"path"}),
                        "digest": base_digest,
                        "revision": shelf.revision(given),
                    },
                    "finetune": settings,
                    "device": engine.resolved_device,
                }
                pool = records.get(subset_record.inputs[label(RAW_POOL, dataset)])
                _describe(
                    staging,
                    facts,
                    name=f"{owner}/{recipe_name}",
                    base_model=given.public_name,
                    target=owner,
                    recipe=recipe,
                    pool_samples=int(pool.about["rows"]),
                    finetune=spec,
                    report=report,
                )
                staging.rename(folder)
        tuned = tuned_digest(folder)
        record = Record(
            asset=label(key, context.partition_key),
            data_version=tuned,
            inputs=inputs,
            entries=entries,
            files=folder_files(shelf.home, folder),
            about={
                "base": base_digest,
                "revision": shelf.revision(given),
                "tuned": tuned,
                "folder": folder.relative_to(shelf.home).as_posix(),
                "finetune": settings,
                "samples": report.samples,
            },
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(tuned),
            metadata={
                "dagster/row_count": report.samples,
                "samples without a token to learn": report.skipped,
                "samples set aside": sum(report.set_aside.values()),
                "reasons of those set aside": table(
                    [
                        {"reason": reason, "samples": count}
                        for reason, count in sorted(report.set_aside.items())
                    ]
                ),
                "truncated samples": report.truncated,
                "tokens learned a pass": report.learned_tokens,
                "optimiser steps": report.steps,
                "first loss": report.losses[0],
                "final loss": report.final_loss,
                "seconds": round(report.seconds, 1),
                "loss": picture(loss_curve(report.log), "training loss by step"),
                "sources": table(origin_counts(row["origins"] for row in rows)),
                "folder": dg.MetadataValue.path(str(folder)),
                **provenance(records.publish(record), record),
            },
        )

    return tune


def _describe(folder: Path, facts: Mapping[str, Any], **about: Any) -> None:
    """Writes provenance.json and README.md into a folder that is not yet published; `about`
    goes on to the card."""
    from mona.cards import CardSource
    from mona.model_card import model_card

    body = json.dumps(facts, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
    (folder / PROVENANCE_FILE).write_text(body, encoding="utf-8")
    counts = origin_counts(row["origins"] for row in facts["subset"]["rows"])
    card = model_card(
        sources=[CardSource(row["source"], row["licence"], row["samples"]) for row in counts],
        provenance=hashlib.sha256(body.encode()).hexdigest(),
        **about,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
