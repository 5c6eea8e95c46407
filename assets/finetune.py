"""`<target>/<recipe>/finetune` and `controls/<recipe>/finetune` [dataset x model]: the model
tuned on one subset, with the record of what went in.

A tuned model lies under home as finetunes/<owner>/<recipe>/<dataset>.<model>/<name>, the name
being that of its inputs; it appears there by one rename, card and provenance included.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.describe import picture, table
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
from assets.step import finished
from assets.subset import TEST_ROWS, origin_counts, read_subset
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.publishing import publish_folder
from mona.sample import from_records
from mona.spec import FinetuneSpec, LanguageModel, ModelSpec, RecipeSpec
from mona.tokens import RENDERING_VERSION
from mona.tuned import tuned_digest
from resources.asset_partition import AssetPartition
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Records, folder_files
from resources.snapshot import Snapshot
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
        dataset, model_name = dataset_and_model(context)
        model = models[model_name]
        chosen = label(subset, context.partition_key)
        read = Snapshot.of(store, records, [chosen])
        entries = entries_read(shelf, model_name, model, "weights")
        given = base_model(recipe, model)
        base = _Base(
            given,
            shelf.folder(model_name, given),
            shelf.weights_digest(model_name, given),
            shelf.revision(given),
        )
        rows = read_subset(read, chosen, dataset)
        if any(row["messages"] is None for row in rows):
            raise WorkError(f"{chosen} holds withdrawn samples: select anew first")
        name = fingerprint(
            chosen=read.record(chosen).data_version,
            subset=read.inputs[chosen],
            base=base.digest,
            settings=settings,
            rendering=RENDERING_VERSION,
            device=engine.resolved_device,
            processes=engine.processes,
        )
        folder = tuned_folder(store, owner, recipe_name, dataset, model_name, name)
        with store.lock(f"finetune.{owner}.{recipe_name}.{dataset}.{model_name}"):
            title = f"tuning {model_name} on {owner}/{recipe_name}"
            report = _train(title, rows, base, spec, folder, store, engine)
            if not folder.exists():
                _publish(folder, read, chosen, rows, base, settings, recipe, report, engine)
            tuned = tuned_digest(folder)
            return finished(
                read,
                key,
                context.partition_key,
                tuned,
                entries=entries,
                files=folder_files(shelf.home, folder),
                about={
                    "base": base.digest,
                    "revision": base.revision,
                    "tuned": tuned,
                    "folder": folder.relative_to(shelf.home).as_posix(),
                    "finetune": settings,
                    "samples": report.samples,
                },
                shown=_shown(report, rows, folder),
            )

    return tune


@dataclass(frozen=True, slots=True)
class _Base:
    """What is tuned: its entry, folder, digest, and REPO@COMMIT where it is from a hub."""

    given: LanguageModel
    folder: Path
    digest: str
    revision: str | None


def _train(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    base: _Base,
    spec: FinetuneSpec,
    folder: Path,
    store: Store,
    engine: Engine,
) -> "TrainingReport":
    """Trains into scratch, from the last checkpoint where there is one; a folder that is
    published already is only reported on."""
    from mona.finetune import FinetuneJob, launch, planned_steps, write_samples

    scratch = store.folder("scratch", "tuned")
    samples = scratch / f"{folder.name}.jsonl"
    conversations = [from_records(row["messages"]) for row in rows]
    write_samples(conversations, samples)
    job = FinetuneJob(
        samples=samples,
        base=base.folder,
        spec=spec,
        out=folder if folder.exists() else scratch / folder.name,
        scratch=store.folder("scratch") / f"finetune.{folder.name}",
        device=engine.resolved_device,
    )
    with progress_bar(title, planned_steps(len(conversations), spec), "steps") as bar:
        report = launch(job, engine.processes, bar)
    samples.unlink()
    return report


def _publish(
    folder: Path,
    read: Snapshot,
    chosen: str,
    rows: Sequence[Mapping[str, Any]],
    base: _Base,
    settings: Mapping[str, Any],
    recipe: RecipeSpec,
    report: "TrainingReport",
    engine: Engine,
) -> None:
    """Puts the card and the provenance beside what was trained, and the whole in its place."""
    staging = read.store.folder("scratch", "tuned") / folder.name
    of = AssetPartition.parse(chosen)
    (owner, recipe_name), (dataset, _) = of.subset, of.pair
    facts = {
        "subset": {
            "asset": chosen,
            "record": read.inputs[chosen],
            "rows": [
                {key: row[key] for key in ("rank", "sample_id", "score", "origins")} for row in rows
            ],
        },
        "records": sorted(read.records.closure(read.inputs.values())),
        "base": {
            "model": base.given.model_dump(mode="json", exclude={"path"}),
            "digest": base.digest,
            "revision": base.revision,
        },
        "finetune": settings,
        "device": engine.resolved_device,
    }
    pool = read.records.get(read.record(chosen).inputs[label(RAW_POOL, dataset)])
    _describe(
        staging,
        facts,
        name=f"{owner}/{recipe_name}",
        base_model=base.given.public_name,
        target=owner,
        recipe=recipe,
        pool_samples=int(pool.about["rows"]),
        test_rows=read.record(chosen).about.get(TEST_ROWS, 0),
        finetune=recipe.finetune,
        report=report,
    )
    publish_folder(staging, folder)


def _shown(
    report: "TrainingReport", rows: Sequence[Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """What Dagster's UI shows of a fine-tune."""
    from mona.plots import loss_curve

    return {
        "dagster/row_count": report.samples,
        "samples without a token to learn": report.skipped,
        "samples set aside": sum(report.set_aside.values()),
        "reasons of those set aside": table(
            [{"reason": why, "samples": n} for why, n in sorted(report.set_aside.items())]
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
    }


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
