"""`<target>/<recipe>/finetune` and `controls/<recipe>/finetune` [dataset x model]: the model
tuned on one subset, with the record of what went in.

A tuned model lies under home as finetunes/<owner>/<recipe>/<dataset>.<model>/<name>, the name
being that of its inputs; it appears there by one rename, card and provenance included.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.describe import picture, provenance, table
from assets.encoding import GPU_POOL
from assets.keys import (
    Partitions,
    by_model,
    dataset_and_model,
    finetune,
    label,
    model_entry,
    selection,
    subsets,
)
from assets.retries import retried
from assets.subset import read_subset
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.sample import from_records
from mona.spec import FinetuneSpec, LanguageModel, ModelSpec, RecipeSpec
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Record, Records, folder_files
from resources.store import Store

if TYPE_CHECKING:
    from mona.finetune import TrainingReport

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
        code_version=fingerprint(code="1", finetune=settings),
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
        entry = label(model_entry("weights"), model_name)
        entries = {entry: shelf.entry_versions(model_name, model)["weights"]}
        given = base_model(recipe, model)
        base = shelf.folder(model_name, given)
        base_digest = shelf.weights_digest(model_name, given)
        digest, subset_record = _only_input(inputs, records)
        rows = read_subset(store, records, subset_record, dataset)
        if any(row["messages"] is None for row in rows):
            raise WorkError(f"{subset_record.asset} holds withdrawn samples: select anew first")
        conversations = [from_records(row.pop("messages")) for row in rows]
        name = fingerprint(
            chosen=subset_record.data_version,
            subset=digest,
            base=base_digest,
            settings=settings,
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
                _add_card(
                    staging,
                    facts,
                    recipe,
                    spec,
                    report,
                    given,
                    base,
                    subset_record,
                    records,
                    owner,
                    recipe_name,
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
                "truncated samples": report.truncated,
                "tokens learned a pass": report.learned_tokens,
                "optimiser steps": report.steps,
                "first loss": report.losses[0],
                "final loss": report.final_loss,
                "seconds": round(report.seconds, 1),
                "loss": picture(loss_curve(report.log), "training loss by step"),
                "sources": table(_origin_counts(rows)),
                "folder": dg.MetadataValue.path(str(folder)),
                **provenance(records.publish(record), record),
            },
        )

    return tune


def _only_input(inputs: Mapping[str, str], records: Records) -> tuple[str, Record]:
    (digest,) = inputs.values()
    return digest, records.get(digest)


def _origin_counts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """(source, licence, samples) of a subset, most first; a merged duplicate in each."""
    pairs = Counter(
        pair
        for row in rows
        for pair in {(origin["source"], origin["licence"]) for origin in row["origins"]}
    )
    return [
        {"source": source, "licence": licence, "samples": count}
        for (source, licence), count in sorted(pairs.items(), key=lambda x: (-x[1], x[0]))
    ]


def _add_card(
    folder: Path,
    facts: Mapping[str, Any],
    recipe: RecipeSpec,
    spec: FinetuneSpec,
    report: "TrainingReport",
    given: LanguageModel,
    base: Path,
    subset: Record,
    records: Records,
    owner: str,
    recipe_name: str,
) -> None:
    """Writes provenance.json and README.md into a folder that is not yet published."""
    from mona.model_card import CardSource, model_card

    body = json.dumps(facts, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
    (folder / PROVENANCE_FILE).write_text(body, encoding="utf-8")
    rows = facts["subset"]["rows"]
    pools = [records.get(d) for a, d in subset.inputs.items() if a.startswith("raw_pool[")]
    card = model_card(
        name=f"{owner}/{recipe_name}",
        base_model=given.repo or base.name,
        target=owner,
        recipe=recipe,
        pool_samples=sum(int(pool.about["rows"]) for pool in pools),
        sources=[
            CardSource(row["source"], row["licence"], row["samples"])
            for row in _origin_counts(rows)
        ],
        finetune=spec,
        report=report,
        provenance=hashlib.sha256(body.encode()).hexdigest(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
