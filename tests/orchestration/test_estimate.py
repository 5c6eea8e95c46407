"""The plan of a run: figures where they can be had, and the reason, once, where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mona.encoder_cost import Architecture, cpu_flops
from orchestration.cli import cli
from orchestration.estimate import duration
from orchestration.outcome import exit_code
from tests.orchestration.conftest import small_project

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]
_LLAMA = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


@pytest.fixture(autouse=True)
def _no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models here have a config.json and no more."""
    monkeypatch.setattr("orchestration.check.refuse_faults", lambda scope: None)


def planned(config: Path, capsys: Captured) -> dict[str, dict[str, object]]:
    assert exit_code(cli, ["run", "--dry-run", "--json", "--config", str(config)]) == 0
    plan = json.loads(capsys.readouterr().out)
    return {"plan": plan, **{row["asset"]: row for row in plan["steps"]}}


def test_a_plan_from_files_that_no_one_read_yet(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_LLAMA))
    (folder / "model.safetensors").write_bytes(b"\0" * 16)
    project = small_project(tmp_path, folder)
    project.settings["recipes"]["mona"]["finetune"] = {
        "epochs": 3,
        "lora": None,
        "dtype": "float32",
    }
    project.settings["recipes"]["mona"]["budget"] = {"tokens": 1000}
    project.settings["models"]["tiny"]["layer"] = 2
    project.write()
    steps = planned(project.config_path, capsys)
    characters = (tmp_path / "fruit.jsonl").stat().st_size
    assert steps["raw_pool[fruit]"]["tokens"] == characters // 4
    row = steps["activations[fruit|tiny]"]
    # Per block: q and o, k and v, and the three of the MLP; float32.
    block = 2 * 32 * (32 + 16) + 3 * 32 * 48
    assert row["memory"] == 4 * (2 * block + 300 * 32)
    assert float(str(row["seconds"])) > 0
    tuning = steps["adding/mona/finetune[fruit|tiny]"]
    assert tuning["tokens"] == 3000
    assert tuning["memory"] == 4 * 4 * (4 * block + 300 * 32)
    assert steps["plan"]["unknown"] == []
    assert steps["plan"]["fetch"] == []
    assert list((tmp_path / "store").glob("tables/*")) == []


def test_drawn_rows_are_known_before_any_is_read(tmp_path: Path, capsys: Captured) -> None:
    project = small_project(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 16)
    project.settings["datasets"]["fruit"]["subsample"] = {"rows": 7, "max_chars": 400}
    project.write()
    steps = planned(project.config_path, capsys)
    assert steps["raw_pool[fruit]"]["samples"] == 7
    assert steps["raw_pool[fruit]"]["tokens"] == 7 * 130
    (reason,) = steps["plan"]["unknown"]
    assert "its config.json says too little" in reason


def test_the_papers_plan_says_each_reason_once(tmp_path: Path, capsys: Captured) -> None:
    text = (ROOT / "examples" / "paper.yaml").read_text().replace("../data/paper", str(tmp_path))
    config = tmp_path / "c.yaml"
    config.write_text(text)
    assert exit_code(cli, ["run", "--dry-run", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) < 15
    assert "unknown" in out
    assert out.count("Meta-Llama-3-8B is not on this machine yet") == 1
    assert "16 finetune: no figure yet" in out
    assert "would be fetched: dataset teknium/OpenHermes-2.5 of the hub" in out
    assert any("sae[llama3_8b]" in line and "20,000" in line for line in lines)


def test_a_probe_of_this_machine_gives_the_time() -> None:
    shape = Architecture.from_config(_LLAMA)
    assert cpu_flops() == cpu_flops()  # once a process
    assert 1e8 < cpu_flops() < 1e14
    assert shape.seconds(2_000, 2, "cpu") == pytest.approx(2 * shape.seconds(1_000, 2, "cpu"))
    assert shape.weights(-1) == shape.weights(4) == 2 * shape.weights(2)


def test_times_are_said_as_people_do() -> None:
    spoken = [duration(0.2), duration(59), duration(600), duration(7200)]
    assert spoken == ["about 1 s", "about 59 s", "about 10 min", "about 2.0 h"]
