"""The command: exit codes, one-line errors, what is not imported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration import cli
from resources.store import Store
from tests.orchestration.conftest import Project, sums

ROOT = Path(__file__).resolve().parents[2]


def mona(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has imported what is heavy already."""
    project.write()
    argv = ["mona", *words, "--config", str(project.config_path)]
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", argv)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def in_its_own_process(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    project.write()
    command = [sys.executable, "-m", "orchestration.cli", *words]
    return subprocess.run(
        [*command, "--config", str(project.config_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("mona: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_status_and_a_run_without_work_import_neither_torch_nor_sae_lens(
    project: Project,
) -> None:
    project.first_run()
    for words in (["status"], ["run"]):
        argv = ["mona", *words, "--config", str(project.config_path)]
        code = (
            f"import sys; sys.argv = {argv!r}\n"
            "from orchestration.cli import cli\n"
            "cli(standalone_mode=False)\n"
            "assert 'torch' not in sys.modules and 'sae_lens' not in sys.modules\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_inside_a_step_says_so_in_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    words = ["run", "--dataset", "fruit", "--upto", "raw_pool"]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "replace", lambda *_: signal.raise_signal(number))
        stopped = mona(project, *words)
    assert stopped.returncode == 130
    making, read, *end = stopped.stderr.splitlines()
    assert making == "making raw_pool[fruit]"
    assert read.startswith("reading fruit: 120 rows")
    # The empty line ends the one that a terminal shows ^C on.
    assert end == ["", "stopped; the next run goes on from the last commit"]
    with project.opened() as (_, _, instance):
        assert [run.is_finished for run in instance.get_runs()] == [True]
    assert mona(project, *words).returncode == 0
    assert project.status()["raw_pool[fruit]"] == "fresh"


def test_show_and_export_read_back(project: Project, tmp_path: Path) -> None:
    project.first_run(datasets=("fruit",))
    shown = mona(project, "select", "show", "adding/mona", "--dataset", "fruit", "--json")
    rows = json.loads(shown.stdout)
    assert [row["rank"] for row in rows] == list(range(1, 11))
    out = tmp_path / "subset.jsonl"
    words = ["export", "adding/mona", "--dataset", "fruit", "--format", "jsonl", "--out", str(out)]
    assert mona(project, *words).returncode == 0
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["sample_id"] for row in written] == [row["sample_id"] for row in rows]
    again = mona(project, *words)
    assert again.returncode == 2
    assert "exists" in one_line(again)


def _missing_file(project: Project) -> None:
    (project.root / "fruit.jsonl").unlink()


def _empty_file(project: Project) -> None:
    (project.root / "fruit.jsonl").write_text("")


def _invalid_lines(project: Project) -> None:
    with (project.root / "fruit.jsonl").open("a") as file:
        file.write("{not json\n" * 5)


def _no_weights(project: Project) -> None:
    empty = project.root / "model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    project.settings["models"]["tiny"]["language_model"]["path"] = str(empty)


def _nan_weights(project: Project) -> None:
    from safetensors.torch import load_file, save_file

    folder = project.root / "model"
    shutil.copytree(project.settings["models"]["tiny"]["language_model"]["path"], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    project.settings["models"]["tiny"]["language_model"]["path"] = str(folder)


def _sae_of_another_width(project: Project) -> None:
    import torch
    from safetensors.torch import save_file

    folder = project.root / "sae"
    folder.mkdir()
    tensors = {
        "encoder.weight": torch.ones(64, 24),
        "encoder.bias": torch.zeros(64),
        "W_dec": torch.ones(64, 24),
        "b_dec": torch.zeros(24),
    }
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text('{"d_in": 24, "num_latents": 64, "k": 4}')
    project.settings["models"]["tiny"]["sae"] = {
        "load": {"path": str(folder), "format": "eleuther"},
        "quality_datasets": ["fruit"],
    }


def _wrong_encoding(project: Project) -> None:
    rows = b'{"instruction": "Name a fruit.", "input": "", "output": "P\xe4r"}\n' * 9
    (project.root / "fruit.jsonl").write_bytes(rows)


def _empty_messages(project: Project) -> None:
    project.write_rows("fruit", [{"instruction": "", "input": "", "output": ""}] * 9)


def _unknown_format(project: Project) -> None:
    project.write_rows("fruit", [{"colour": "red", "shape": "round"}] * 9)


def _layer_outside(project: Project) -> None:
    project.settings["models"]["tiny"]["layer"] = 77


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (_missing_file, 2, "no file at"),
        (_empty_file, 2, "empty file"),
        (_invalid_lines, 1, "fruit.jsonl"),
        (_no_weights, 2, "no *.safetensors weights"),
        (_layer_outside, 2, "layer 77 is outside the model"),
        (_nan_weights, 1, "down_proj.weight"),
        (_sae_of_another_width, 2, "the SAE reads a residual stream of width 24"),
        (_wrong_encoding, 2, "fruit.jsonl"),
        (_empty_messages, 2, "fruit.jsonl"),
        (_unknown_format, 2, "no known format has the fields"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(
    project: Project, damage: object, code: int, says: str
) -> None:
    project.first_run(datasets=("fruit",), upto="raw_pool")
    before = project.store.sample_ids("pool.fruit").to_pylist()
    damage(project)  # type: ignore[operator]
    done = mona(project, "run", "--dataset", "fruit")
    assert done.returncode == code, done.stderr[-1500:]
    assert says in one_line(done)
    assert project.store.sample_ids("pool.fruit").to_pylist() == before


def test_an_expected_failure_of_the_command_itself(project: Project) -> None:
    _missing_file(project)
    done = in_its_own_process(project, "run", "--dataset", "fruit")
    assert done.returncode == 2
    assert "no file at" in one_line(done)


def test_a_row_of_ten_megabytes_is_one_sample(project: Project) -> None:
    long = {**sums(7000, 1)[0], "output": "a very long answer " * 550_000}
    project.write_rows("fruit", [*project.rows("fruit"), long])
    assert mona(project, "run", "--dataset", "fruit", "--upto", "raw_pool").returncode == 0
    lengths = project.store.read("pool.fruit", ["n_chars"]).column("n_chars").to_numpy()
    assert len(lengths) == 121
    assert lengths.max() > 10_000_000


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["select", "show", "nothing"], 2, "'nothing' is no TARGET/RECIPE"),
        (["select", "show", "adding/mona", "--dataset", "verse"], 1, "was never made"),
        (["select", "show", "adding/mona"], 2, "pass --dataset: one of fruit, verse"),
        (["run", "--upto", "nowhere"], 2, "--upto nowhere: one of"),
        (
            [
                "export",
                "adding/mona",
                "--dataset",
                "verse",
                "--format",
                "jsonl",
                "--out",
                "/proc/none/x",
            ],
            1,
            "was never made",
        ),
    ],
)
def test_a_wrong_request_is_one_line(
    project: Project, words: list[str], code: int, says: str
) -> None:
    done = mona(project, *words)
    assert done.returncode == code
    assert says in one_line(done)


def test_a_failed_check_of_a_first_run_is_one_line_with_its_figure(project: Project) -> None:
    project.settings["models"]["tiny"]["sae"]["max_fvu"] = 1e-9
    done = mona(project, "run", "--upto", "sae")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("mona: sae[tiny]: check explains_variance failed: FVU 0.")
    assert last.endswith("or raise models.tiny.sae.max_fvu")


def test_a_run_waits_for_who_holds_its_table_and_says_so(project: Project) -> None:
    with project.store.lock("pool.fruit"):
        command = [sys.executable, "-m", "orchestration.cli", "run", "--upto", "raw_pool"]
        run = subprocess.Popen(
            [*command, "--dataset", "fruit", "--config", str(project.config_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert run.stderr is not None
        said = ""
        while "waiting: pool.fruit: another run is working on it" not in said:
            said = run.stderr.readline()
            assert said, "the run ended"
        assert f"process {os.getpid()} on " in said
    _, rest = run.communicate()
    assert run.returncode == 0, rest


def test_unknown_names_are_requests_gone_wrong(project: Project) -> None:
    done = mona(project, "run", "--target", "nothing")
    assert done.returncode == 2
    assert "no target is called 'nothing'" in one_line(done)


def test_dry_run_plans_without_work(project: Project) -> None:
    project.write_rows("fruit", sums(0, 20))
    done = mona(project, "run", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    rows = plan["steps"]
    assert plan["fetch"] == []
    assert [row["asset"] for row in rows][:4] == [
        "raw_pool[fruit]",
        "raw_pool[verse]",
        "adding/examples",
        "sae[tiny]",
    ]
    assert {row["status"] for row in rows} <= {"missing", "waiting"}
    assert project.store.table_names() == []
