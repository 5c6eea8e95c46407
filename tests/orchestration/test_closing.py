"""What a run ends with: subsets, leaderboards, and commands that work when pasted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from assets.keys import leaderboard
from orchestration.cli import cli
from orchestration.closing import boards, next_commands
from orchestration.home import open_instance
from orchestration.outcome import exit_code
from tests.orchestration.conftest import Project, measured_project, small_project

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --quiet sets for its process does not outlive a test."""
    monkeypatch.setenv("TQDM_DISABLE", "")


@pytest.fixture
def ranked(tmp_path: Path) -> Project:
    """A project with a leaderboard in its history, as the asset reports it; nothing was run."""
    project = measured_project(small_project(tmp_path, tmp_path / "none"))
    key = dg.MultiPartitionKey({"dataset": "fruit", "model": "tiny"})
    rows = [
        dg.TableRecord({"recipe": "mona", "value": 1.25, "rows": 6}),
        dg.TableRecord({"recipe": "base\x1b[2J", "value": 1.5, "rows": 6}),
    ]
    with open_instance(project.config) as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                leaderboard("adding"),
                partition=key,
                metadata={"held-out loss": dg.MetadataValue.table(rows), "other": 5},
            )
        )
    return project


def test_the_leaderboard_is_printed_at_any_time(ranked: Project, capsys: Captured) -> None:
    words = ["leaderboard", "--config", str(ranked.config_path)]
    assert exit_code(cli, words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "adding from fruit by tiny, held-out loss:"
    assert lines[2].split() == ["recipe", "value", "rows"]
    assert lines[3].split() == ["mona", "1.25", "6"]
    assert lines[4].split() == ["base\\u001b[2J", "1.5", "6"]
    assert exit_code(cli, [*words, "adding", "--json"]) == 0
    (board,) = json.loads(capsys.readouterr().out)
    assert board["tables"]["held-out loss"][0] == {"recipe": "mona", "value": 1.25, "rows": 6}
    assert exit_code(cli, [*words, "eating"]) == 0
    assert "no leaderboard was made" in capsys.readouterr().out
    assert exit_code(cli, [*words, "ading"]) == 2
    assert "did you mean 'adding'?" in capsys.readouterr().err


def test_a_run_ends_with_what_was_made_and_what_to_do(project: Project, capsys: Captured) -> None:
    words = ["run", "--dataset", "fruit", "--config", str(project.config_path)]
    assert exit_code(cli, words) == 0
    shown = capsys.readouterr()
    assert "making sae[tiny]" in shown.err
    lines = shown.out.splitlines()
    assert re.fullmatch(r"7 made, 0 were fresh, \d+ min \d+ s", lines[0])
    assert f"subsets, under {project.config.store_root}:" in lines
    row = next(line for line in lines if line.startswith("adding/mona"))
    assert row.split()[:4] == ["adding/mona", "fruit", "tiny", "10"]
    assert "next:" in lines
    for command in lines[lines.index("next:") + 1 :]:
        called, *rest = shlex.split(command)
        assert Path(called).name == "mona"
        assert exit_code(cli, [rest[0], "-h"]) == 0
    capsys.readouterr()
    assert (project.config.home / "logs" / "dagster.log").read_text().count("RUN_SUCCESS") == 6
    # Fresh: nothing is repeated, and no bar was ever asked for.
    assert exit_code(cli, [*words, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "0 made, 7 were fresh\n"
    assert shown.err == ""
    assert exit_code(cli, [*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["made"] == []
    assert told["subsets"][0]["samples"] == 10
    # Of verse no selection was made.
    assert exit_code(cli, ["select", "summary", "--json", *words[3:]]) == 0
    (summary,) = json.loads(capsys.readouterr().out)
    assert (summary["subset"], summary["dataset"], summary["samples"]) == (
        "adding/mona",
        "fruit",
        10,
    )


def test_verbose_shows_dagsters_lines_and_quiet_nothing(
    project: Project, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.logs._shown", False)
    words = ["run", "--upto", "raw_pool", "--config", str(project.config_path)]
    assert exit_code(cli, [*words, "--dataset", "fruit", "--verbose"]) == 0
    err = capsys.readouterr().err
    assert "STEP_SUCCESS" in err
    assert "making raw_pool[fruit]" in err
    monkeypatch.setattr("orchestration.logs._shown", False)
    assert exit_code(cli, [*words, "--dataset", "verse", "--quiet"]) == 0
    err = capsys.readouterr().err
    assert "making" not in err
    assert "reading" not in err
    assert "STEP" not in err


def test_the_commands_name_what_is_needed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(Path.cwd() / ".venv/bin/mona"), "run"])
    made = [{"subset": "adding/mona", "dataset": "fruit", "model": "tiny"}]
    commands = next_commands(project.config, made, True)
    assert [shlex.split(command)[0] for command in commands] == [".venv/bin/mona"] * 4
    assert "select show adding/mona --dataset fruit --config" in commands[0]
    assert "leaderboard" in commands[2]


def test_the_last_line_of_the_demo_is_a_command() -> None:
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo", "-o", ".venv/run.stamp"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    echo, last = shlex.split(done.stdout.splitlines()[-1])
    called, *words = shlex.split(last)
    assert (echo, called) == ("echo", ".venv/bin/mona")
    assert words[:3] == ["select", "show", "gsm8k/mona"]
    assert (ROOT / words[-1]).is_file()
    assert exit_code(cli, [*words[:2], "-h"]) == 0


def test_boards_without_history_are_none(ranked: Project) -> None:
    ranked.settings["store"]["root"] = "elsewhere"
    with open_instance(ranked.config) as instance:
        assert boards(ranked.config, instance) == []
