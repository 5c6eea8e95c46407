"""`mona check`: what it finds without work, all of it at once, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mona.errors import Faults
from mona.spec import Wheel
from orchestration import check
from orchestration.check import Scope, faults, to_fetch
from orchestration.cli import cli
from orchestration.config import load_config
from orchestration.definitions import build_resources
from orchestration.outcome import exit_code
from tests.orchestration.conftest import Project, small_project

ROOT = Path(__file__).resolve().parents[2]
Settings = dict[str, Any]


@pytest.fixture
def light(tmp_path: Path, tiny_llama: Path) -> Project:
    """The small project over a copy of its model, which may be damaged."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    return small_project(tmp_path, tmp_path / "model")


def found(project: Project) -> list[str]:
    config = project.config
    resources = build_resources(config)
    return faults(Scope.of(config, resources["sources"], resources["shelf"]))


def _no_file(project: Project) -> None:
    (project.root / "fruit.jsonl").unlink()


def _rows_of_another_kind(project: Project) -> None:
    project.write_rows("verse", [{"colour": "red", "shape": "round"}] * 9)


def _a_web_page(project: Project) -> None:
    (project.root / "verse.jsonl").write_text("<!doctype html>\n<html>\n<p>Sign in\n")


def _an_unknown_suffix(project: Project) -> None:
    (project.root / "verse.docx").write_text("x")
    source = project.settings["datasets"]["verse"]["sources"][0]
    source["path"] = "verse.docx"


def _bad_examples(project: Project) -> None:
    (project.root / "examples.jsonl").write_text('{"instruction": "x"\n')


def _bad_test_rows(project: Project) -> None:
    (project.root / "test.jsonl").write_text('{"question": 5}\n')


def _wrong_reader(project: Project) -> None:
    project.settings["targets"]["adding"]["reader"] = "gsm8k"


def _layer(project: Project) -> None:
    project.settings["models"]["tiny"]["layer"] = -9


def _no_weights(project: Project) -> None:
    (project.root / "model" / "model.safetensors").unlink()


def _no_sae(project: Project) -> None:
    project.settings["models"]["tiny"]["sae"] = {
        "load": {"path": "no_sae", "format": "eleuther"},
        "quality_datasets": ["fruit"],
    }


def _no_subfolder(project: Project) -> None:
    (project.root / "sae").mkdir()
    project.settings["models"]["tiny"]["sae"] = {
        "load": {"path": "sae", "subfolder": "layers.9", "format": "eleuther"},
        "quality_datasets": ["fruit"],
    }


def _no_base(project: Project) -> None:
    tuning = {"base": {"path": "no_model"}}
    project.settings["recipes"]["mona"]["finetune"] = tuning


@pytest.mark.parametrize(
    ("damage", "where", "says"),
    [
        (_no_file, "datasets.fruit.sources.fruit", "no file at"),
        (_rows_of_another_kind, "datasets.verse.sources.verse", "no known format has the fields"),
        (_a_web_page, "datasets.verse.sources.verse", "verse.jsonl:1"),
        (_an_unknown_suffix, "datasets.verse.sources.verse", "unknown suffix"),
        (_bad_examples, "targets.adding.examples", "examples.jsonl"),
        (_bad_test_rows, "targets.adding.test", "test.jsonl"),
        (_wrong_reader, "targets.adding.examples", "no field 'question'"),
        (_layer, "models.tiny", "layer -9 is outside the model: 1 to 5"),
        (_no_weights, "models.tiny", "no *.safetensors weights"),
        (_no_sae, "models.tiny.sae.load", "no folder at"),
        (_no_subfolder, "models.tiny.sae.load.subfolder", "layers.9"),
        (_no_base, "recipes.mona.finetune.base", "no_model"),
    ],
)
def test_a_fault_is_found_without_work(
    light: Project, damage: Callable[[Project], None], where: str, says: str
) -> None:
    damage(light)
    lines = [line for line in found(light) if line.startswith(where)]
    assert lines, found(light)
    assert any(says in line for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_a_sound_project_has_no_fault_and_nothing_to_fetch(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(project) == []
    assert exit_code(cli, ["check", "--config", str(project.config_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"faults": [], "fetch": []}


def test_one_bad_file_among_good_ones_may_be_allowed(light: Project) -> None:
    folder = light.root / "many"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"colour": "red"}\n' * 9)
    (folder / "b.jsonl").write_text((light.root / "fruit.jsonl").read_text())
    source = light.settings["datasets"]["fruit"]["sources"][0]
    source["path"] = "many"
    (fault,) = [line for line in found(light) if line.startswith("datasets.")]
    assert "a.jsonl:1" in fault
    source["allow_partial"] = True
    assert not [line for line in found(light) if line.startswith("datasets.")]


@pytest.mark.parametrize(
    ("extra", "module", "change"),
    [
        (
            "finetune",
            "peft",
            lambda s: s["recipes"]["mona"].update(finetune={"epochs": 1}),
        ),
        (
            "evaluate",
            "lm_eval",
            lambda s: s["targets"]["adding"].update(evaluation={"rows": 1}),
        ),
        (
            "hub",
            "datasets",
            lambda s: s["datasets"]["fruit"].update(
                sources=[{"name": "far", "hub": {"repo": "orchard/fruit"}}]
            ),
        ),
        (
            "sae-lens",
            "sae_lens",
            lambda s: s["models"]["tiny"].update(
                sae={"load": {"path": "."}, "quality_datasets": ["fruit"]}
            ),
        ),
        (
            "sae-lens",
            "sae_lens",
            lambda s: s["models"]["tiny"].update(sae={"train": {"datasets": ["fruit"]}}),
        ),
    ],
)
def test_a_group_of_packages_that_is_not_installed_is_named(
    light: Project,
    monkeypatch: pytest.MonkeyPatch,
    extra: str,
    module: str,
    change: Callable[[Settings], None],
) -> None:
    there = check.find_spec
    if extra == "sae-lens":
        light.settings["models"]["tiny"]["sae"] = {
            "load": {"path": ".", "format": "eleuther"},
            "quality_datasets": ["fruit"],
        }
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == module else there(name))
    assert not any("optional group" in line for line in found(light))
    change(light.settings)
    (line,) = [line for line in found(light) if "optional group" in line]
    assert f"pip install 'mona-select[{extra}]'" in line


def test_all_faults_are_said_at_once_and_before_any_work(
    light: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in (_no_file, _bad_examples, _layer):
        damage(light)
    light.write()
    assert exit_code(cli, ["check", "--config", str(light.config_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("mona: ") for line in lines)
    assert exit_code(cli, ["check", "--config", str(light.config_path), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["faults"]) == len(lines)


def test_a_run_begins_with_the_check_of_its_part(
    light: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    _bad_test_rows(light)
    light.write()
    words = ["run", "--config", str(light.config_path)]
    assert exit_code(cli, [*words, "--upto", "raw_pool"]) == 0
    capsys.readouterr()
    assert exit_code(cli, words) == 2
    assert "targets.adding.test" in capsys.readouterr().err
    assert light.status()["sae[tiny]"] == "missing"


def test_nothing_is_fetched_or_loaded_for_the_papers_setting(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "paper.yaml").read_text().replace("../data/paper", str(tmp_path))
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml")
    resources = build_resources(config)
    scope = Scope.of(config, resources["sources"], resources["shelf"])
    fetched = to_fetch(scope)
    assert "model meta-llama/Meta-Llama-3-8B of the hub" in fetched
    assert "dataset teknium/OpenHermes-2.5 of the hub" in fetched
    assert "wheel lm-eval==0.4.13" in fetched
    assert len(fetched) == len(set(fetched))
    code = (
        "import sys, socket\n"
        "def refuse(*_): raise AssertionError('asked the network')\n"
        "socket.socket.connect = refuse\n"
        "from orchestration.outcome import exit_code\n"
        "from orchestration.cli import cli\n"
        f"assert exit_code(cli, ['check', '--config', {str(tmp_path / 'c.yaml')!r}]) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a run fetches it" in done.stdout


def test_a_wheel_that_is_here_is_looked_into(light: Project) -> None:
    import zipfile

    digest = "a" * 64
    wheel = {"name": "rows==1.0", "sha256": digest, "members": "rows/*.jsonl"}
    light.settings["targets"]["adding"]["examples"] = {"wheel": wheel}
    light.settings["targets"]["adding"].pop("test")
    config = light.config
    sources = build_resources(config)["sources"]
    assert not sources.has_wheel(Wheel(**wheel))
    assert not [line for line in found(light) if line.startswith("targets.")]
    folder = config.home / "wheels" / digest
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "rows-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("rows/a.jsonl", "{")
    lines = [line for line in found(light) if line.startswith("targets.adding.examples")]
    assert lines, found(light)


def test_faults_are_a_request_gone_wrong() -> None:
    error = Faults(["a", "b"])
    assert str(error) == "a\nb"
    assert error.faults == ("a", "b")
