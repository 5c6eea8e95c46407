"""Checks are judged by the limits of now; what a run that died left unchecked is checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.keys import RAW_POOL, SAE
from orchestration.definitions import build_definitions
from orchestration.home import open_instance
from orchestration.limits import EXPLAINS_VARIANCE, moved_limits
from orchestration.planner import Standing
from tests.orchestration.bare import bare_config, bare_settings, homed_config, report_check


class Toy:
    """A project of which only Dagster's events exist."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings = folder, bare_settings()

    def standing(self, instance: dg.DagsterInstance, max_fvu: float | None = None) -> Standing:
        if max_fvu is not None:
            self.settings["models"]["tiny"]["sae"]["max_fvu"] = max_fvu
        config = bare_config(self.folder, self.settings)
        return Standing(instance, build_definitions(config).resolve_asset_graph(), config)

    def make(self, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> None:
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def instance(toy: Toy) -> Iterator[dg.DagsterInstance]:
    with open_instance(homed_config(toy.folder)) as instance:
        yield instance


def fvu(value: float, limit: float) -> dict[str, Any]:
    return {"passed": value <= limit, "metadata": {"fvu": value, "max_fvu": limit}}


def test_a_figure_is_judged_by_the_limit_of_now(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.make(instance, SAE, "tiny")
    report_check(instance, EXPLAINS_VARIANCE, "tiny", **fvu(0.6, 0.5))
    standing = toy.standing(instance)
    said = standing.fault(SAE, "tiny")
    assert said is not None
    assert "FVU 0.600 is above max_fvu 0.5: train it on more tokens" in said
    assert "raise models.tiny.sae.max_fvu" in said
    assert moved_limits(standing.config, instance) == []
    # Raised: the same figure is enough, and the check is due, so that the UI says so too.
    raised = toy.standing(instance, 0.7)
    assert raised.fault(SAE, "tiny") is None
    assert moved_limits(raised.config, instance) == ["tiny"]
    # Lowered: what passed is refused.
    report_check(instance, EXPLAINS_VARIANCE, "tiny", **fvu(0.6, 0.7))
    assert toy.standing(instance, 0.7).fault(SAE, "tiny") is None
    assert "above max_fvu 0.1" in (toy.standing(instance, 0.1).fault(SAE, "tiny") or "")


def test_a_loaded_sae_is_not_told_to_train(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.settings["models"]["tiny"]["sae"] = {
        "load": {"path": "sae"},
        "quality_datasets": ["fruit"],
    }
    toy.make(instance, SAE, "tiny")
    report_check(instance, EXPLAINS_VARIANCE, "tiny", **fvu(0.9, 0.5))
    assert "load an SAE of this layer" in (toy.standing(instance).fault(SAE, "tiny") or "")


def test_any_other_failed_check_shows_with_its_figure(
    toy: Toy, instance: dg.DagsterInstance
) -> None:
    check = dg.AssetCheckKey(RAW_POOL, "distinct_ids")
    toy.make(instance, RAW_POOL, "fruit")
    report_check(instance, check, "fruit", passed=False, description="3 repeated ids")
    standing = toy.standing(instance)
    assert standing.fault(RAW_POOL, "fruit") == "check distinct_ids failed: 3 repeated ids"
    # A warning stops nothing.
    warned = {"passed": False, "severity": dg.AssetCheckSeverity.WARN}
    report_check(instance, check, "fruit", **warned)
    assert toy.standing(instance).fault(RAW_POOL, "fruit") is None


def test_what_was_made_anew_and_not_checked_is_due_and_no_old_result_stands(
    toy: Toy, instance: dg.DagsterInstance
) -> None:
    toy.make(instance, RAW_POOL, "fruit")
    names = {check.name for check in toy.standing(instance).due_checks(RAW_POOL, "fruit")}
    assert names == {"distinct_ids", "messages_present"}
    for name in names:
        report_check(instance, dg.AssetCheckKey(RAW_POOL, name), "fruit", passed=False)
    standing = toy.standing(instance)
    assert standing.due_checks(RAW_POOL, "fruit") == []
    assert standing.fault(RAW_POOL, "fruit") is not None
    # Made anew by a run that was killed before its checks.
    toy.make(instance, RAW_POOL, "fruit")
    standing = toy.standing(instance)
    assert len(standing.due_checks(RAW_POOL, "fruit")) == 2
    assert standing.fault(RAW_POOL, "fruit") is None
