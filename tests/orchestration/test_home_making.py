"""Dagster's home is made once and whole, whatever is there and whoever else makes it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from assets.pools import CPU_POOL, GPU_POOL
from mona.errors import WorkError
from orchestration import home_making
from orchestration.home import open_instance
from orchestration.home_making import make_home
from tests.orchestration.bare import bare_config, made_home

INDEX = "history/runs/index.db"


@pytest.fixture
def made() -> Path:
    """A whole home. Copy it."""
    return made_home()


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    """What Dagster makes of a new home is copied: it takes seconds."""
    open_once = home_making._open_once

    def copy(home: Path) -> None:
        if home.name.endswith(".new"):
            settings = (home / "dagster.yaml").read_text()
            shutil.copytree(made, home, dirs_exist_ok=True)
            (home / "dagster.yaml").write_text(settings)
        else:
            open_once(home)

    monkeypatch.setattr(home_making, "_open_once", copy)


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def opens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster opens the home, with both pools, and takes an event."""
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    with dg.DagsterInstance.get() as instance:
        storage = instance.event_log_storage
        assert {CPU_POOL, GPU_POOL} <= storage.get_concurrency_keys()
        assert storage.get_concurrency_info(GPU_POOL).slot_count == 1
        instance.report_runless_asset_event(dg.AssetMaterialization("a"))
        assert instance.get_runs() == []
        assert instance.all_instigator_state() == []


def two_revisions(home: Path) -> None:
    execute(home / INDEX, "INSERT INTO alembic_version VALUES ('0a0a0a0a0a0a')")


def no_revision(home: Path) -> None:
    execute(home / "history" / "runs.db", "DELETE FROM alembic_version")


def a_table_short(home: Path) -> None:
    execute(home / INDEX, "DROP TABLE concurrency_limits")


def an_empty_database(home: Path) -> None:
    (home / "schedules" / "schedules.db").write_bytes(b"")


def no_index(home: Path) -> None:
    (home / INDEX).unlink()


def empty_settings(home: Path) -> None:
    (home / "dagster.yaml").write_text("")


def only_a_folder(home: Path) -> None:
    shutil.rmtree(home)
    home.mkdir()


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    "damage",
    [
        two_revisions,
        no_revision,
        a_table_short,
        an_empty_database,
        no_index,
        empty_settings,
        only_a_folder,
    ],
)
def test_a_half_made_home_is_finished(
    tmp_path: Path,
    made: Path,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "dagster"
    shutil.copytree(made, home)
    (home / "made.json").unlink()
    damage(home)
    # What a making that was killed leaves.
    (tmp_path / "dagster.new" / "history").mkdir(parents=True)
    make_home(home)
    assert "telemetry" in (home / "dagster.yaml").read_text()
    assert not (tmp_path / "dagster.new").exists()
    opens(home, monkeypatch)


@pytest.mark.usefixtures("copied")
def test_history_is_never_thrown_away(tmp_path: Path, made: Path) -> None:
    home = tmp_path / "dagster"
    shutil.copytree(made, home)
    (home / "made.json").unlink()
    row = "INSERT INTO asset_keys (asset_key) VALUES ('[\"a\"]')"
    execute(home / INDEX, row, "DROP TABLE concurrency_limits")
    with pytest.raises(WorkError, match=r"index\.db: Dagster's history is damaged"):
        make_home(home)
    (home / "schedules" / "schedules.db").write_bytes(b"no database" * 99)
    (home / INDEX).unlink()
    with pytest.raises(WorkError, match=r"schedules\.db: Dagster's history can't be read"):
        make_home(home)


@pytest.mark.usefixtures("copied")
def test_a_sound_home_of_an_older_version_keeps_its_history_and_settings(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "dagster"
    shutil.copytree(made, home)
    (home / "made.json").unlink()
    settings = "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1}}\n"
    (home / "dagster.yaml").write_text(settings)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("kept"))
        instance.event_log_storage.set_concurrency_slots(CPU_POOL, 7)
    make_home(home)
    with dg.DagsterInstance.get() as instance:
        assert instance.fetch_materializations(dg.AssetKey("kept"), limit=1).records
        assert instance.event_log_storage.get_concurrency_info(CPU_POOL).slot_count == 7
    assert (home / "dagster.yaml").read_text() == settings


@pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # the children don't use it
def test_first_openings_at_once_all_succeed(tmp_path: Path) -> None:
    config, processes = bare_config(tmp_path), 3
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open_instance(config) as instance:
                    instance.report_runless_asset_event(dg.AssetMaterialization("a"))
                    code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
    with open_instance(config) as instance:
        found = instance.fetch_materializations(dg.AssetKey("a"), limit=9).records
        assert len(found) == processes
