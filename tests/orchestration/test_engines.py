"""One engine a database: Dagster's storages use it, and two homes do not share one."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from orchestration.engines import _engine, share_engines


def _instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return dg.DagsterInstance.get()


def test_a_database_has_one_engine_for_all_statements_and_homes_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_engines()
    for home, keys in (("a", ["one"]), ("b", [])):
        with _instance(tmp_path / home, monkeypatch) as instance:
            before = _engine.cache_info()
            for key in keys:
                instance.report_runless_asset_event(dg.AssetMaterialization(key))
            for _ in range(5):
                assert [key.path[0] for key in instance.get_asset_keys()] == keys
            after = _engine.cache_info()
            # If these fail, Dagster makes its engines elsewhere now: share_engines has no effect.
            assert after.hits - before.hits >= 5
            assert after.misses - before.misses <= 1
    with _instance(tmp_path / "a", monkeypatch) as instance:
        assert [key.path[0] for key in instance.get_asset_keys()] == ["one"]
