"""`<target>/<recipe>/evaluation` and `<target>/leaderboard` [dataset x model]: a target's
metrics of one recipe's model, and of all of them side by side."""

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.describe import picture, table
from assets.entries import entries_read
from assets.finetune import base_model
from assets.keys import (
    Partitions,
    by_model,
    dataset_and_model,
    evaluation,
    evaluations,
    examples,
    finetune,
    label,
    leaderboard,
    model_entry,
    owner,
)
from assets.pools import CPU_POOL, GPU_POOL
from assets.retries import retried
from assets.step import finished
from assets.targets import examples_table, test_rows_table
from mona.device import resolve_dtype
from mona.fingerprint import fingerprint
from mona.spec import (
    EvaluationSpec,
    ModelSpec,
    RecipeSpec,
    SystemTurns,
    TargetSpec,
    Template,
    TokenPolicy,
)
from mona.targets import TargetRow, from_table
from mona.tokens import RENDERING_VERSION, Renderer
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Records
from resources.snapshot import Snapshot
from resources.store import Store

if TYPE_CHECKING:
    from mona.evaluation.leaderboard import Standing
    from mona.evaluation.loss import HeldOutLoss
    from mona.evaluation.results import Evaluation

LOSS = "held-out loss"
# One row a test row and metric. Of the loss, `value` is the sum over `tokens` (nats); of the
# others tokens is null.
RESULTS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("subtask", pa.string()),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64()),
        pa.field("answer", pa.string()),
    ]
)


def results_table(target: str, recipe: str, dataset: str, model: str) -> str:
    """The Lance table of one evaluation's rows."""
    return f"evaluation.{target}.{recipe}.{dataset}.{model}"


def build_evaluations(
    targets: Mapping[str, TargetSpec],
    recipes: Mapping[str, RecipeSpec],
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> list[dg.AssetsDefinition]:
    """An asset for each target and recipe that are measured, and each target's leaderboard."""
    pairs = evaluations(targets, recipes)
    measured = [
        _evaluation(target, recipe, targets[target], recipes[recipe], models, partitions)
        for target, recipe in pairs
    ]
    ranked = dict.fromkeys(target for target, _ in pairs)
    boards = [
        _leaderboard(
            target, targets[target], [r for t, r in pairs if t == target], recipes, partitions
        )
        for target in ranked
    ]
    return measured + boards


def _evaluation(
    target: str,
    recipe_name: str,
    spec: TargetSpec,
    recipe: RecipeSpec,
    models: Mapping[str, ModelSpec],
    partitions: Partitions,
) -> dg.AssetsDefinition:
    settings = spec.evaluation
    assert settings is not None
    key = evaluation(target, recipe_name)
    trained = recipe.selector != "none"
    tuned_key = finetune(owner(target, recipe), recipe_name)
    template = recipe.finetune.template if recipe.finetune is not None else "chat"
    system = recipe.finetune.system if recipe.finetune is not None else "keep"

    @dg.asset(
        key=key,
        partitions_def=partitions.dataset_model,
        deps=[
            dg.AssetDep(examples(target)),
            dg.AssetDep(tuned_key) if trained else by_model(model_entry("weights")),
        ],
        group_name=target,
        code_version=fingerprint(
            code="1", evaluation=settings.model_dump(mode="json"), rendering=RENDERING_VERSION
        ),
        pool=GPU_POOL,
        description=f"The metrics of recipe '{recipe_name}' on the test rows of '{target}'.",
    )
    @retried
    def measure(
        context: dg.AssetExecutionContext,
        shelf: Models,
        store: Store,
        engine: Engine,
        records: Records,
    ) -> dg.MaterializeResult[Any]:
        from mona.tuned import load_tuned

        dataset, model_name = dataset_and_model(context)
        model = models[model_name]
        shown, tuned = label(examples(target)), label(tuned_key, context.partition_key)
        read = Snapshot.of(store, records, [shown, tuned] if trained else [shown])
        given = base_model(recipe, model)
        base = shelf.folder(model_name, given)
        if trained:
            made = read.record(tuned)
            folder, weights = store.folder(str(made.about["folder"])), made.data_version
            entries = {}
        else:
            folder, weights = base, shelf.weights_digest(model_name, given)
            entries = entries_read(shelf, model_name, model, "weights")
        dtype = resolve_dtype("auto", engine.resolved_device)
        version = fingerprint(
            weights=weights,
            examples=read.record(shown).data_version,
            settings=settings.model_dump(mode="json"),
            template=template,
            dtype=dtype,
        )
        test = _rows(read, shown, test_rows_table(target))
        shots = _rows(read, shown, examples_table(target))
        name = results_table(target, recipe_name, dataset, model_name)
        with store.lock(name):
            network, tokenizer = load_tuned(
                folder,
                base,
                engine.resolved_device,
                dtype,
                trust_remote_code=given.trust_remote_code,
            )
            scratch = store.folder("scratch", f"evaluation.{version}")
            about = f"measuring {recipe_name} on {target}"
            found = _answers(network, tokenizer, spec, test, shots, settings, scratch, about)
            loss = _loss(
                network, tokenizer, (template, system), test, settings, model.max_length, about
            )
            store.replace(name, _results(found, loss).to_batches(), RESULTS_SCHEMA)
            result = finished(
                read,
                key,
                context.partition_key,
                version,
                entries=entries,
                tables=[name],
                about={
                    "weights": weights,
                    "revision": shelf.revision(given),
                    "task data": dict(found.data),
                    "evaluation": settings.model_dump(mode="json"),
                },
                shown=_figures(found, loss, settings),
                pinned=True,
            )
        shutil.rmtree(scratch)
        return result

    return measure


def _figures(found: "Evaluation", loss: "HeldOutLoss", settings: EvaluationSpec) -> dict[str, Any]:
    """What Dagster's UI shows of an evaluation."""
    figures: list[dict[str, Any]] = [
        {"metric": metric, "value": v.value, "low": v.low, "high": v.high, "rows": found.n}
        for metric, v in found.metrics.items()
    ]
    if loss.sample_ids:
        v = loss.interval(settings.seed)
        rows = len(loss.sample_ids)
        figures.append(
            {"metric": LOSS, "value": v.value, "low": v.low, "high": v.high, "rows": rows}
        )
    subtasks = [
        {"subtask": s.subtask, "rows": s.n, **{k: float(v) for k, v in s.metrics.items()}}
        for s in found.subtasks
    ]
    return {
        "dagster/row_count": found.n,
        **{f["metric"]: float(f["value"]) for f in figures},
        "metrics (95 % intervals)": table(figures),
        "subtasks": table(subtasks),
    }


def _rows(read: Snapshot, asset: str, name: str) -> list[TargetRow]:
    return from_table(read.table(asset, name).read())


def _answers(
    network: Any,
    tokenizer: Any,
    spec: TargetSpec,
    test: Sequence[TargetRow],
    shown: Sequence[TargetRow],
    settings: EvaluationSpec,
    scratch: Any,
    about: str,
) -> "Evaluation":
    """The task's answers; none where the test rows have nothing to compare them with."""
    from mona.evaluation.results import summarise
    from mona.evaluation.run import evaluate

    if settings.task is None and not any(row.references for row in test):
        return summarise([], macro=False, seed=settings.seed)
    # How many rows a task of the harness has is not known before it is loaded.
    total = settings.rows if settings.task else min(len(test), settings.rows or len(test))
    with progress_bar(about, total, "rows") as advance:
        return evaluate(
            network,
            tokenizer,
            spec.reader,
            test,
            shown,
            settings,
            scratch=scratch,
            progress=advance,
        )


def _loss(
    network: Any,
    tokenizer: Any,
    rendering: tuple[Template, SystemTurns],
    test: Sequence[TargetRow],
    settings: EvaluationSpec,
    max_length: int,
    about: str,
) -> "HeldOutLoss":
    """The held-out loss; of no rows where none has an answer."""
    from mona.evaluation.draw import draw_rows
    from mona.evaluation.loss import HeldOutLoss, held_out_loss

    template, system = rendering
    if not any(row.messages[-1].role == "assistant" for row in test):
        return HeldOutLoss([], np.zeros(0), np.zeros(0, np.int64))
    rows = draw_rows(test, settings.loss_rows or settings.rows, settings.seed)
    renderer = Renderer(tokenizer, template, TokenPolicy(), max_length, system)
    with progress_bar(f"{about}: held-out loss", len(rows), "rows") as advance:
        return held_out_loss(network, renderer, rows, progress=advance)


def _results(found: "Evaluation", loss: "HeldOutLoss") -> pa.Table:
    rows = [
        {
            "sample_id": row.sample_id,
            "subtask": row.subtask,
            "metric": metric,
            "value": float(value),
            "tokens": None,
            "answer": row.answer,
        }
        for row in found.rows
        for metric, value in row.metrics.items()
    ]
    rows += [
        {
            "sample_id": sample_id,
            "subtask": None,
            "metric": LOSS,
            "value": float(total),
            "tokens": int(tokens),
            "answer": None,
        }
        for sample_id, total, tokens in zip(loss.sample_ids, loss.sums, loss.tokens, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA)


def _leaderboard(
    target: str,
    spec: TargetSpec,
    measured: Sequence[str],
    recipes: Mapping[str, RecipeSpec],
    partitions: Partitions,
) -> dg.AssetsDefinition:
    settings = spec.evaluation
    assert settings is not None
    key = leaderboard(target)
    baseline = next((name for name in measured if recipes[name].selector == "random"), None)

    @dg.asset(
        key=key,
        partitions_def=partitions.dataset_model,
        deps=[dg.AssetDep(evaluation(target, recipe)) for recipe in measured],
        group_name=target,
        code_version="1",
        pool=CPU_POOL,
        description=f"Every recipe's figures on '{target}', side by side.",
    )
    def rank(
        context: dg.AssetExecutionContext, store: Store, records: Records
    ) -> dg.MaterializeResult[Any]:
        from mona.evaluation.leaderboard import loss_standings, task_standings

        names = {
            recipe: label(evaluation(target, recipe), context.partition_key) for recipe in measured
        }
        read = Snapshot.of(store, records, names.values())
        found, losses = {}, {}
        for recipe, asset in names.items():
            (name,) = read.record(asset).tables
            rows = read.table(asset, name).read().to_pylist()
            found[recipe], losses[recipe] = _read_results(rows, spec)
        headline = next((e.headline for e in found.values() if e.metrics), None)
        tasks = (
            task_standings(found, headline, baseline=baseline, seed=settings.seed)
            if headline
            else []
        )
        having = {recipe: loss for recipe, loss in losses.items() if loss.sample_ids}
        by_loss = loss_standings(having, baseline=baseline, seed=settings.seed)
        return finished(
            read,
            key,
            context.partition_key,
            fingerprint(evaluations={a: read.record(a).data_version for a in names.values()}),
            about={"baseline": baseline, "order": [s.recipe for s in by_loss]},
            shown={
                **_board(LOSS, by_loss, baseline),
                **(_board(headline, tasks, baseline) if headline else {}),
            },
        )

    return rank


def _board(metric: str, standings: "Sequence[Standing]", baseline: str | None) -> dict[str, Any]:
    from mona.plots import leaderboard as draw

    return {
        metric: table([_shown(s, baseline) for s in standings]),
        f"{metric} plot": picture(draw(_bars(standings), metric, baseline), f"{metric} by recipe"),
    }


def _read_results(
    rows: Sequence[Mapping[str, Any]], spec: TargetSpec
) -> "tuple[Evaluation, HeldOutLoss]":
    """What `_results` wrote, as it was."""
    from mona.evaluation.loss import HeldOutLoss
    from mona.evaluation.results import RowResult, summarise
    from mona.evaluation.run import is_macro

    assert spec.evaluation is not None
    metrics: dict[str, dict[str, float]] = {}
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["metric"] != LOSS:
            first.setdefault(row["sample_id"], row)
            metrics.setdefault(row["sample_id"], {})[row["metric"]] = row["value"]
    answered = [
        RowResult(sample_id, first[sample_id]["subtask"], first[sample_id]["answer"], values)
        for sample_id, values in metrics.items()
    ]
    lost = [row for row in rows if row["metric"] == LOSS]
    return (
        summarise(
            answered, macro=is_macro(spec.reader, spec.evaluation), seed=spec.evaluation.seed
        ),
        HeldOutLoss(
            [row["sample_id"] for row in lost],
            np.array([row["value"] for row in lost]),
            np.array([row["tokens"] for row in lost], np.int64),
        ),
    )


def _bars(standings: "Sequence[Standing]") -> list[tuple[str, float, float, float]]:
    return [(s.recipe, s.value, s.low, s.high) for s in standings]


def _shown(standing: "Standing", baseline: str | None) -> dict[str, Any]:
    gap = standing.difference
    return {
        "recipe": standing.recipe,
        "value": round(standing.value, 4),
        "low": round(standing.low, 4),
        "high": round(standing.high, 4),
        "rows": standing.n,
        f"less {baseline}": ""
        if gap is None
        else f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})",
    }
