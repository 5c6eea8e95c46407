"""A configuration without data or models behind it: enough for Dagster's home and definitions."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationPlanned,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import DagsterEvent, DagsterEventType

from orchestration.config import Config, load_config
from orchestration.home_making import make_home


def bare_settings() -> dict[str, Any]:
    return {
        "store": {"root": "store"},
        "datasets": {"fruit": {"sources": [{"name": "fruit", "path": "fruit.jsonl"}]}},
        "models": {
            "tiny": {
                "language_model": {"path": "model"},
                "sae": {"train": {"datasets": ["fruit"]}, "max_fvu": 0.5},
            }
        },
        "targets": {"adding": {"reader": "pool", "examples": {"path": "examples.jsonl"}}},
        "recipes": {"mona": {"budget": {"count": 3}}},
    }


def bare_config(folder: Path, settings: dict[str, Any] | None = None) -> Config:
    path = folder / "mona.yaml"
    path.write_text(yaml.safe_dump(settings or bare_settings()))
    return load_config(path)


@functools.cache
def made_home() -> Path:
    """A home as Dagster makes it, which takes seconds: made once a process. Copy it."""
    folder = Path(tempfile.mkdtemp(prefix="home."))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_home(folder / "dagster")
    return folder / "dagster"


def homed_config(folder: Path, settings: dict[str, Any] | None = None) -> Config:
    """The configuration, its home made."""
    config = bare_config(folder, settings)
    shutil.copytree(made_home(), config.home / "dagster")
    return config


def report_check(
    instance: dg.DagsterInstance,
    check: dg.AssetCheckKey,
    partition: str | None,
    *,
    passed: bool,
    **more: Any,
) -> None:
    """A check's result on the newest materialisation of a partition, as a run leaves it."""
    wanted = dg.AssetRecordsFilter(
        asset_key=check.asset_key,
        asset_partitions=[partition] if partition is not None else None,
    )
    (made,) = instance.fetch_materializations(wanted, limit=1).records
    evaluation = dg.AssetCheckEvaluation(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=passed,
        partition=partition,
        blocking=True,
        target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
            storage_id=made.storage_id, run_id=made.run_id, timestamp=made.timestamp
        ),
        **more,
    )
    subset = None
    if partition is not None:
        kind = dg.StaticPartitionsDefinition([partition])
        subset = kind.subset_with_partition_keys([partition])
    planned = AssetCheckEvaluationPlanned(
        asset_key=check.asset_key, check_name=check.name, partitions_subset=subset
    )
    run_id = str(uuid.uuid4())
    for kind_of_event, data in (
        (DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED, planned),
        (DagsterEventType.ASSET_CHECK_EVALUATION, evaluation),
    ):
        event = DagsterEvent(kind_of_event.value, job_name="a", event_specific_data=data)
        instance.report_dagster_event(event, run_id)
