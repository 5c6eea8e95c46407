"""Dagster's settings in a home: written, brought up to date, left to who edited them."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import yaml

from orchestration.home_settings import _BEFORE, SETTINGS, settle_settings


def test_an_older_versions_settings_are_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "dagster.yaml"
    for there in ("", *_BEFORE):
        path.write_text(there)
        settle_settings(tmp_path)
        assert path.read_text() == SETTINGS
    path.unlink()
    settle_settings(tmp_path)
    assert path.read_text() == SETTINGS
    edited = SETTINGS.replace("default_limit: 1", "default_limit: 3")
    path.write_text(edited)
    settle_settings(tmp_path)
    assert path.read_text() == edited


def test_dagster_takes_the_settings_and_leaves_the_terminal_alone(
    tmp_path: Path, monkeypatch: object
) -> None:
    settle_settings(tmp_path)
    assert yaml.safe_load(SETTINGS)["compute_logs"]["class"] == "NoOpComputeLogManager"
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager"


def test_a_step_keeps_the_terminal(tmp_path: Path) -> None:
    """Where Dagster captures a step's output it puts a file in the place of descriptor 2."""
    settle_settings(tmp_path)
    inside: list[os.stat_result] = []

    @dg.asset
    def looks() -> None:
        inside.append(os.fstat(2))

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        dg.materialize([looks], instance=instance)
    outside = os.fstat(2)
    assert [(seen.st_dev, seen.st_ino) for seen in inside] == [(outside.st_dev, outside.st_ino)]
