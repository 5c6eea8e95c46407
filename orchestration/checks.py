"""Asset checks: what must hold of the stored tables, read back from the store."""

import warnings
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.encoding import NEW_ROWS_FVU
from assets.keys import (
    ACTIVATIONS,
    RAW_POOL,
    SAE,
    SAE_CODES,
    Partitions,
    both,
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
from resources.encoding_tables import pool_population
from resources.models import Models
from resources.records import Records
from resources.snapshot import Snapshot
from resources.store import Store
from resources.table_at import TableAt

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
    def check(context: dg.AssetCheckExecutionContext, store: Store, records: Records) -> Any:
        asset = label(RAW_POOL, context.partition_key)
        table = Snapshot.of(store, records, [asset]).table(asset, pool_table(context.partition_key))
        ids = table.sample_ids
        empty = sum(
            int(pc.sum(pc.less(pc.list_value_length(batch.column(0)), 2)).as_py() or 0)
            for batch in table.scan(["messages"])
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
    def check(
        context: dg.AssetCheckExecutionContext, shelf: Models, store: Store, records: Records
    ) -> Any:
        from mona.sae_quality import likely_layer

        name = context.partition_key
        made = Snapshot.of(store, records, [label(SAE, name)]).record(label(SAE, name))
        record = shelf.sae_figures(name, str(made.about["sae"]))
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
                "coverage": "Every pool row has one code, unless it was set aside.",
                "finite": "Values are finite and positive, and L1 is their sum.",
                "fingerprint": "The table was made under the current fingerprint.",
                "explains_new_rows": "The pinned SAE still explains the rows just added.",
            },
            partitions.dataset_model,
        ),
    )
    def check(
        context: dg.AssetCheckExecutionContext, store: Store, shelf: Models, records: Records
    ) -> Any:
        dataset, name = _dataset_and_model(context.partition_key)
        read = _encoded(store, records, dataset, name)
        made = read.record(label(SAE_CODES, context.partition_key))
        (table_name,) = made.tables
        table = read.table(made.asset, table_name)
        yield _coverage(read, table, dataset, SAE_CODES, set_aside=_set_aside(read, dataset, name))
        faults = 0
        for batch in table.scan(["l1", "indices", "values"]):
            codes = from_arrow(batch)
            faults += int((~np.isfinite(codes.values) | (codes.values <= 0)).sum())
            sums = row_sums(codes.values, codes.indptr).astype(np.float32)
            faults += int((sums != codes.l1).sum())
        yield _result("finite", SAE_CODES, faults, "faulty values or sums")
        sae = str(read.record(label(SAE, name)).about["sae"])
        current = shelf.resolve(name, config.models[name]).codes(sae)
        written = (table.schema.metadata or {}).get(b"fingerprint", b"").decode()
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
            {"coverage": "Every pool row has one row here."},
            partitions.dataset_model,
        ),
    )
    def check(context: dg.AssetCheckExecutionContext, store: Store, records: Records) -> Any:
        dataset, name = _dataset_and_model(context.partition_key)
        pool, made = label(RAW_POOL, dataset), label(ACTIVATIONS, context.partition_key)
        read = Snapshot.of(store, records, [pool, made])
        yield _coverage(read, _activations(read, dataset, name), dataset, ACTIVATIONS)

    return check


def _encoded(store: Store, records: Records, dataset: str, model: str) -> Snapshot:
    """A pool, its encodings and the SAE, as they are recorded now."""
    pair = both(dataset, model)
    keys = (label(RAW_POOL, dataset), label(ACTIVATIONS, pair), label(SAE_CODES, pair))
    return Snapshot.of(store, records, [*keys, label(SAE, model)])


def _activations(read: Snapshot, dataset: str, model: str) -> TableAt:
    asset = label(ACTIVATIONS, both(dataset, model))
    meaning = str(read.record(asset).about["encoder"])
    return read.table(asset, pool_population(dataset).activations_table(meaning))


def _set_aside(read: Snapshot, dataset: str, model: str) -> pa.Array:
    """The ids that have an activations row with a reason, and so no code."""
    rows = _activations(read, dataset, model).read(["sample_id", "set_aside"])
    return rows.filter(pc.is_valid(rows.column("set_aside"))).column("sample_id").combine_chunks()


def _coverage(
    read: Snapshot,
    table: TableAt,
    dataset: str,
    key: dg.AssetKey,
    set_aside: pa.Array | None = None,
) -> dg.AssetCheckResult:
    """Rows of samples that left the pool may stay: who reads passes over them."""
    pool = read.table(label(RAW_POOL, dataset), pool_table(dataset)).sample_ids
    stored = table.sample_ids
    known = stored if set_aside is None else pa.concat_arrays([stored, set_aside])
    missing = int(pc.sum(pc.invert(pc.is_in(pool, known))).as_py() or 0)
    repeated = len(stored) - len(pc.unique(stored))
    return _result(
        "coverage",
        key,
        missing + repeated,
        "rows missing or repeated",
        missing=missing,
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
    def check(context: dg.AssetCheckExecutionContext, store: Store, records: Records) -> Any:
        dataset, name = _dataset_and_model(context.partition_key)
        asset = label(key, context.partition_key)
        stored = Snapshot.of(store, records, [asset]).table(
            asset, subset_table(owner, recipe, dataset, name)
        )
        table = stored.read(["rank", "sample_id", "score", "length"])
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
