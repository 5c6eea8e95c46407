"""What an installed wheel needs, held without building one: the acceptance test builds it."""

from __future__ import annotations

import os
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import orchestration

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mona", "resources", "assets", "orchestration")
CONFIG = """\
store: {root: store}
datasets: {rows: {sources: [{name: rows, path: rows.jsonl}]}}
models:
  tiny:
    language_model: {path: llama}
    sae: {train: {datasets: [rows], latents: 128, k: 8}}
targets: {adding: {reader: pool, examples: {path: rows.jsonl}}}
recipes: {best: {budget: {count: 2}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "mona.yaml").write_text(CONFIG)
    return tmp_path / "mona.yaml"


def setuptools_settings() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings: dict[str, Any] = tomllib.load(file)["tool"]["setuptools"]
    return settings


def files_below(package: str) -> list[Path]:
    found = (path for path in (ROOT / package).rglob("*") if path.is_file())
    return [path for path in found if "__pycache__" not in path.parts]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_every_file(package: str) -> None:
    settings = setuptools_settings()
    assert any(fnmatch(package, pattern) for pattern in settings["packages"]["find"]["include"])
    for path in files_below(package):
        # A folder without it is no package, and what is in it stays behind.
        assert (path.parent / "__init__.py").is_file(), path
        name = ".".join(path.parent.relative_to(ROOT).parts)
        data = settings["package-data"]
        globs = ["*.py", *data.get("*", []), *data.get(name, [])]
        assert any(fnmatch(path.name, pattern) for pattern in globs), path


def test_both_workspace_files_load_the_same_in_the_folder_of_the_packages() -> None:
    loaded = []
    for path in (ROOT / "workspace.yaml", ROOT / "orchestration" / "workspace.yaml"):
        (entry,) = yaml.safe_load(path.read_text(encoding="utf-8"))["load_from"]
        module = entry["python_module"]
        assert (path.parent / module.pop("working_directory")).resolve() == ROOT
        loaded.append(module)
    assert loaded[0] == loaded[1]
    # By its name Dagster keeps what it knows of sensors and schedules.
    assert loaded[0]["location_name"] == "mona"


def test_the_ui_needs_no_clone_and_not_the_users_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestration.cli import cli

    started: list[list[str]] = []
    folders: list[Path] = []

    def execv(_program: str, command: list[str]) -> None:
        started.append(command)
        folders.append(Path.cwd())

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr("orchestration.home.dagster_home", lambda _config: str(home))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("MONA_CONFIG", "")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["ui", "--config", "mona.yaml", "--port", "3999"])
    assert done.exit_code == 0, done.output
    (command,) = started
    workspace = Path(command[command.index("-w") + 1])
    assert workspace.is_absolute()
    assert workspace.parent == Path(orchestration.__file__).resolve().parent
    assert workspace.is_file()
    assert folders == [home] == [Path(os.environ["DAGSTER_HOME"])]
    assert os.environ["MONA_CONFIG"] == str(config)


def test_dagster_finds_the_definitions_by_the_modules_name(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg
    from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module

    monkeypatch.setenv("MONA_CONFIG", str(config))
    monkeypatch.chdir(config.parent)
    (target,) = loadable_targets_from_python_module("orchestration.definitions", str(config.parent))
    assert target.attribute == "definitions"
    made = target.target_definition()  # type: ignore[operator]
    keys = made.resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["adding", "best", "selection"]) in keys
