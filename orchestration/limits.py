"""Blocking checks, judged by the limits that the configuration states now, and run again where
their last result is out of date.

Dagster keeps a check's result with the limit of its time. A figure does not change when its limit
does, so an edited limit is enough: nothing is made anew for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from assets.keys import SAE
from mona.spec import SaeSpec
from orchestration.config import Config
from orchestration.home import run_here

EXPLAINS_VARIANCE = dg.AssetCheckKey(SAE, "explains_variance")
_ENDED = (AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED)


def fvu_fault(model: str, spec: SaeSpec, fvu: float) -> str | None:
    """Why an SAE explains too little, and what to do; None when it explains enough."""
    if fvu <= spec.max_fvu:
        return None
    better = (
        "train it on more tokens, with fewer latents or a larger k"
        if spec.train is not None
        else "load an SAE of this layer, or one with a larger k"
    )
    return (
        f"FVU {fvu:.3f} is above max_fvu {spec.max_fvu:g}: {better}, or raise "
        f"models.{model}.sae.max_fvu"
    )


def fault(
    check: dg.AssetCheckKey,
    partition: str | None,
    evaluation: dg.AssetCheckEvaluation,
    config: Config,
) -> str | None:
    """What a check's last result says against an asset partition now; None when nothing."""
    if check == EXPLAINS_VARIANCE and partition in config.models:
        figure = _figure(evaluation, "fvu")
        if figure is not None:
            return fvu_fault(partition, config.models[partition].sae, figure)
    if evaluation.passed or evaluation.severity != dg.AssetCheckSeverity.ERROR:
        return None
    return evaluation.description or "no reason is given"


def _figure(evaluation: dg.AssetCheckEvaluation, name: str) -> float | None:
    found = evaluation.metadata.get(name)
    return found.value if isinstance(found, dg.FloatMetadataValue) else None


def is_current(instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str) -> bool:
    """Whether a check was run, to its end, on what the partition holds now."""
    found = instance.event_log_storage.get_asset_check_partition_info(
        [check], partition_keys=[partition]
    )
    return any(it.is_current and it.latest_execution_status in _ENDED for it in found)


def moved_limits(config: Config, instance: dg.DagsterInstance) -> list[str]:
    """The models whose SAE was last checked against another limit than the configuration's."""
    moved = []
    for name, model in config.models.items():
        evaluation = last_evaluation(instance, EXPLAINS_VARIANCE, name)
        if evaluation is not None and _figure(evaluation, "max_fvu") != model.sae.max_fvu:
            moved.append(name)
    return moved


def last_evaluation(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str | None
) -> dg.AssetCheckEvaluation | None:
    """A check's newest result on a partition, or None."""
    from dagster._core.event_api import PartitionKeyFilter

    found = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=1, partition_filter=PartitionKeyFilter(key=partition)
    )
    event = found[0].event if found else None
    return event.asset_check_evaluation if event else None


def check_again(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    checks: Iterable[dg.AssetCheckKey],
    partition: str,
) -> None:
    """Runs checks of one asset alone on a partition; what they find is in their results."""
    run_here(
        job.get_subset(asset_selection=set(), asset_check_selection=set(checks)),
        instance,
        # As a tag, since Dagster finds no partitions of a run of checks alone.
        tags={"dagster/partition": partition},
        raise_on_error=False,
    )
