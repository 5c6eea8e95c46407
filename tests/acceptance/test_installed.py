"""A wheel in an environment of its own, used in a folder away from the clone: the commands, the UI
and the notebook. Some minutes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.acceptance.test_daemon import served, wait_until
from tests.orchestration.conftest import Project, project  # noqa: F401

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mona", "resources", "assets", "orchestration")
LOADED = """{ workspaceOrError { ... on Workspace { locationEntries { name
locationOrLoadError { ... on RepositoryLocation { repositories { assetNodes { id } } } } } } } }"""


@pytest.fixture
def python(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's interpreter: the wheel is installed there, what it depends on is borrowed
    from this one. A path file is not followed into the other, so its editable install, which
    would find the clone, is not active."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    made = folder / "env" / "bin" / "python"
    install = ["install", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([*pip, "--python", str(made), *install], check=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return made


def test_every_command_works_away_from_the_clone(
    python: Path,
    project: Project,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    # A folder of the user's whose names are those of our packages and of Python's own modules.
    for name in ("assets", "resources"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    monkeypatch.chdir(elsewhere)
    config = ["--config", str(project.config_path)]

    def said(*words: str) -> str:
        done = subprocess.run(
            [python.parent / "mona", *words], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    assert said("--version").startswith("mona ")
    assert "no fault found" in said("check", *config)
    assert "never made" in said("run", "--dry-run", *config)
    assert "11 made" in said("run", *config)
    assert "0 made" in said("run", *config)
    rows = json.loads(
        said("select", "show", "adding/mona", "--dataset", "fruit", "--json", *config)
    )
    assert len(rows) == 10
    out = ["--format", "jsonl", "--out", "subset.jsonl"]
    said("export", "adding/mona", "--dataset", "fruit", *out, *config)
    assert len(Path("subset.jsonl").read_text().splitlines()) == 10
    card = ["--dataset", "fruit", "--out", "card.md"]
    said("lineage", "card", "adding/mona", *card, *config)
    assert "CC0-1.0" in Path("card.md").read_text()
    assert said("lineage", "verify", *config)


def test_the_ui_and_dagster_load_the_definitions(
    python: Path,
    project: Project,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MONA_CONFIG", str(project.config_path))
    validate = ["-m", "dagster", "definitions", "validate", "-m", "orchestration.definitions"]
    done = subprocess.run([python, *validate], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

    with served(project, str(python)) as address:
        body = json.dumps({"query": LOADED}).encode()
        ask = urllib.request.Request(
            f"{address}/graphql", body, {"Content-Type": "application/json"}
        )
        found: list[dict[str, object]] = []

        def loaded() -> bool:
            with suppress(URLError, OSError), urllib.request.urlopen(ask, timeout=30) as answer:
                entries = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
                found[:] = [entry for entry in entries if entry["locationOrLoadError"]]
            return bool(found)

        wait_until(loaded, (project.root / "ui.log").read_text())
    (location,) = found
    assert location["name"] == "mona"
    assert "adding/mona/selection" in json.dumps(location)


def test_a_notebook_has_the_names_and_no_dagster(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = (
        "import sys, mona\n"
        "for name in mona.__all__: getattr(mona, name)\n"
        "print(mona.__file__, 'dagster' in sys.modules)"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    file, dagster = done.stdout.split()
    assert Path(file).is_relative_to(python.parents[1])
    assert dagster == "False"
