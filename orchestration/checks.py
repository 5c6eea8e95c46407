"""Asset checks: what must hold of the stored tables, read back from the store."""

import warnings
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.compute as pc

from assets.encoding import NEW_ROWS_FVU
from assets.keys import (
    ACTIVATIONS,
    RAW_POOL,
    SAE,
    SAE_CODES,
    Partitions,
    evaluation,
    evaluations,
    finetune,
    label,
    leaderboard,
    selection,
    subsets,
)
from assets.raw_pool import pool_table
from assets.subset import subset_table
from mona.codes import from_arrow, row_sums
from mona.spec import Budget
from orchestration.config import Config
from orchestration.limits import EXPLAINS_VARIANCE, fvu_fault
from orchestration.taints import CHECK as NOTHING_WITHDRAWN
from orchestration.taints import taints
from resources.encodings import pool_population
from resources.models import Models
from resources.records import Records
from resources.store import Store

warnings.filterwarnings("ignore", category=dg.PreviewWarning)


def build_checks(config: Config, partitions: Partitions) -> list[dg.AssetChecksDefinition]:
    """All checks of a configuration, each partitioned like its asset."""
    checks = [
        _pool_checks(partitions),
        _sae_checks(config, partitions),
        _codes_checks(config, partitions),
        _activation_checks(config, partitions),
    ]
    for owner, recipe in subsets(config.targets, config.recipes):
        checks.append(_selection_check(owner, recipe, config, partitions))
        checks.append(_withdrawal_check(selection(owner, recipe), partitions))
        if config.recipes[recipe].finetune is not None:
            checks.append(_withdrawal_check(finetune(owner, recipe), partitions))
    measured = evaluations(config.targets, config.recipes)
    boards = dict.fromkeys(leaderboard(target) for target, _ in measured)
    for key in (*(evaluation(*pair) for pair in measured), *boards):
        checks.append(_withdrawal_check(key, partitions))
    return checks


def _result(
    name: str, key: dg.AssetKey, faults: int, what: str, **shown: Any
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=faults == 0,
        check_name=name,
        asset_key=key,
        description=f"{faults} {what}" if faults else "",
        metadata={what: faults, **shown},
    )


def _specs(
    key: dg.AssetKey, names: dict[str, str], partitions_def: dg.PartitionsDefinition[Any]
) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            name, asset=key, blocking=True, description=about, partitions_def=partitions_def
        )
        for name, about in names.items()
    ]


def _pool_checks(partitions: Partitions) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name="raw_pool_checks",
        specs=_specs(
            RAW_POOL,
            {"distinct_ids": "No sample id occurs twice.", "messages_present": "No empty sample."},
            partitions.dataset,
        ),
    )
    def check(context: dg.AssetCheckExecutionContext, store: Store) -> Any:
        table = pool_table(context.partition_key)
        ids = store.sample_ids(table)
        empty = sum(
            int(pc.sum(pc.less(pc.list_value_length(batch.column(0)), 2)).as_py() or 0)
            for batch in store.scan(table, ["messages"])
        )
        yield _result("distinct_ids", RAW_POOL, len(ids) - len(pc.unique(ids)), "repeated ids")
        yield _result("messages_present", RAW_POOL, empty, "samples of fewer than two turns")

    return check


def _sae_checks(config: Config, partitions: Partitions) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name="sae_checks",
        specs=_specs(
            SAE,
            {
                EXPLAINS_VARIANCE.name: "FVU on held-out tokens is under max_fvu.",
                "layer_fits": "No neighbouring layer is explained better.",
            },
            partitions.model,
        ),
    )
    def check(context: dg.AssetCheckExecutionContext, shelf: Models) -> Any:
        from mona.sae_quality import likely_layer

        name = context.partition_key
        record = shelf.current_record(name)
        fvu = float(record["quality"]["fvu"])
        fault = fvu_fault(name, config.models[name].sae, fvu)
        yield dg.AssetCheckResult(
            passed=fault is None,
            check_name=EXPLAINS_VARIANCE.name,
            asset_key=SAE,
            description=fault or "",
            metadata={"fvu": fvu, "max_fvu": config.models[name].sae.max_fvu},
        )
        by_layer = {int(layer): value for layer, value in record["fvu_by_layer"].items()}
        best = likely_layer(by_layer) if by_layer else None
        fits = best is None or best == record["layer"]
        yield dg.AssetCheckResult(
            passed=fits,
            check_name="layer_fits",
            asset_key=SAE,
            # A neighbour can be explained a little better by chance, so this only warns.
            severity=dg.AssetCheckSeverity.WARN,
            description="" if fits else f"layer {best} is explained better than {record['layer']}",
            metadata={"fvu by layer": by_layer},
        )

    return check


def _codes_checks(config: Config, partitions: Partitions) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name="sae_codes_checks",
        specs=_specs(
            SAE_CODES,
            {
                "coverage": "Every pool row has a code and every code its pool row.",
                "finite": "Values are finite and positive, and L1 is their sum.",
                "fingerprint": "The table was made under the current fingerprint.",
                "explains_new_rows": "The pinned SAE still explains the rows just added.",
            },
            partitions.dataset_model,
        ),
    )
    def check(context: dg.AssetCheckExecutionContext, store: Store, shelf: Models) -> Any:
        dataset, name = _dataset_and_model(context.partition_key)
        digest = str(shelf.current_record(name)["digest"])
        current = shelf.codes_fingerprint(name, config.models[name], digest)
        table = pool_population(dataset).codes_table(name, current)
        yield _coverage(store, table, dataset, SAE_CODES)
        faults = 0
        for batch in store.scan(table, ["l1", "indices", "values"]):
            codes = from_arrow(batch)
            faults += int((~np.isfinite(codes.values) | (codes.values <= 0)).sum())
            sums = row_sums(codes.values, codes.indptr).astype(np.float32)
            faults += int((sums != codes.l1).sum())
        yield _result("finite", SAE_CODES, faults, "faulty values or sums")
        written = (store.open(table).schema.metadata or {}).get(b"fingerprint", b"").decode()
        yield _result("fingerprint", SAE_CODES, int(written != current), "foreign fingerprints")
        yield _new_rows_check(context, config.models[name].sae.max_fvu)

    return check


def _new_rows_check(context: dg.AssetCheckExecutionContext, allowed: float) -> dg.AssetCheckResult:
    """Warns, never blocks: a drifted pool may still be ranked, but its SAE should be trained
    anew."""
    wanted = dg.AssetRecordsFilter(asset_key=SAE_CODES, asset_partitions=[context.partition_key])
    (made,) = context.instance.fetch_materializations(wanted, limit=1).records
    assert made.asset_materialization is not None
    figure = made.asset_materialization.metadata.get(NEW_ROWS_FVU)
    fvu = figure.value if isinstance(figure, dg.FloatMetadataValue) else None
    drifted = fvu is not None and fvu > allowed
    return dg.AssetCheckResult(
        passed=not drifted,
        check_name="explains_new_rows",
        asset_key=SAE_CODES,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"FVU {fvu:.3f} on new rows is above max_fvu {allowed}: edit the SAE's entry "
        "or mona run --retrain-sae"
        if drifted
        else "",
        metadata={"fvu": fvu if fvu is not None else "no new rows", "max_fvu": allowed},
    )


def _activation_checks(config: Config, partitions: Partitions) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name="activations_checks",
        specs=_specs(
            ACTIVATIONS,
            {"coverage": "Every pool row has a row here and every row here its pool row."},
            partitions.dataset_model,
        ),
    )
    def check(context: dg.AssetCheckExecutionContext, store: Store, shelf: Models) -> Any:
        dataset, name = _dataset_and_model(context.partition_key)
        fingerprint = shelf.encoder_fingerprint(name, config.models[name])
        table = pool_population(dataset).activations_table(fingerprint)
        yield _coverage(store, table, dataset, ACTIVATIONS)

    return check


def _coverage(store: Store, table: str, dataset: str, key: dg.AssetKey) -> dg.AssetCheckResult:
    pool, stored = store.sample_ids(pool_table(dataset)), store.sample_ids(table)
    missing = int(pc.sum(pc.invert(pc.is_in(pool, stored))).as_py() or 0)
    extra = int(pc.sum(pc.invert(pc.is_in(stored, pool))).as_py() or 0)
    repeated = len(stored) - len(pc.unique(stored))
    return _result(
        "coverage",
        key,
        missing + extra + repeated,
        "rows missing, extra or repeated",
        missing=missing,
        extra=extra,
        repeated=repeated,
    )


def _selection_check(
    owner: str, recipe: str, config: Config, partitions: Partitions
) -> dg.AssetChecksDefinition:
    key = selection(owner, recipe)
    budget = config.recipes[recipe].budget or Budget(share=1.0)

    @dg.multi_asset_check(
        name=f"{owner}__{recipe}__selection_checks",
        specs=_specs(
            key,
            {"budget_met": "As many samples as the budget asks for, each once, best first."},
            partitions.dataset_model,
        ),
    )
    def check(context: dg.AssetCheckExecutionContext, store: Store) -> Any:
        dataset, name = _dataset_and_model(context.partition_key)
        table = store.read(
            subset_table(owner, recipe, dataset, name), ["rank", "sample_id", "score", "length"]
        )
        scores = table.column("score").to_numpy()
        faults = table.num_rows - len(pc.unique(table.column("sample_id")))
        faults += int((np.diff(scores) > 0).sum()) + int(table.num_rows == 0)
        if budget.count is not None:
            faults += int(table.num_rows > budget.count)
        if budget.tokens is not None:
            faults += int(int(pc.sum(table.column("length")).as_py()) > budget.tokens)
        yield _result("budget_met", key, faults, "faults", chosen=table.num_rows)

    return check


def _withdrawal_check(key: dg.AssetKey, partitions: Partitions) -> dg.AssetChecksDefinition:
    """Failed by a withdrawal, passed again once the asset is made anew. It warns: what is below
    must still be made."""

    @dg.multi_asset_check(
        name="__".join([*key.path, NOTHING_WITHDRAWN]),
        specs=[
            dg.AssetCheckSpec(
                NOTHING_WITHDRAWN,
                asset=key,
                description="It stands on no sample that was withdrawn since.",
                partitions_def=partitions.dataset_model,
            )
        ],
    )
    def check(context: dg.AssetCheckExecutionContext, records: Records) -> Any:
        why = taints(records).get(label(key, context.partition_key))
        yield dg.AssetCheckResult(
            passed=why is None,
            check_name=NOTHING_WITHDRAWN,
            asset_key=key,
            severity=dg.AssetCheckSeverity.WARN,
            description=why or "",
        )

    return check


def _dataset_and_model(key: str) -> tuple[str, str]:
    assert isinstance(key, dg.MultiPartitionKey)
    return key.keys_by_dimension["dataset"], key.keys_by_dimension["model"]
