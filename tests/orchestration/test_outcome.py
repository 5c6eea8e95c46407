"""How commands end: the code, the line, where the traceback of the unforeseen is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mona import __version__
from mona.errors import Faults, PassingError, RequestError, WorkError
from orchestration.cli import cli
from orchestration.outcome import exit_code
from orchestration.terminal import config_option, printable
from tests.orchestration.test_config import GOOD

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]


def ending(error: BaseException) -> click.Command:
    @click.command()
    @config_option
    def command(config_path: str | None) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (RequestError("c.yaml: k: wrong"), 2, ["mona: c.yaml: k: wrong"]),
        (Faults(["a: one", "b: two"]), 2, ["mona: a: one", "mona: b: two"]),
        (WorkError("it failed"), 1, ["mona: it failed"]),
        (PassingError("silent"), 1, ["mona: silent"]),
        (RequestError("two\nlines\x1b[2J\u202e"), 2, ["mona: two lines\\u001b[2J\\u202e"]),
        (WorkError("no UTF-8: \udce9"), 1, ["mona: no UTF-8: \\udce9"]),
        (
            KeyboardInterrupt(),
            130,
            ["", "stopped; the next run goes on from the last commit"],
        ),
        (OSError(28, "No space left", "/data/x"), 1, ["mona: /data/x: the disk is full"]),
        (PermissionError(13, "Permission denied", "/x/y"), 1, ["mona: /x/y: Permission denied"]),
        (NotADirectoryError(20, "Not a directory", b"/x"), 1, ["mona: /x: Not a directory"]),
    ],
)
def test_a_foreseen_end_is_said_in_its_lines(
    error: BaseException, code: int, lines: list[str], capsys: Captured
) -> None:
    assert exit_code(ending(error), []) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_a_fault_of_ours_keeps_its_traceback_in_the_projects_logs(
    tmp_path: Path, capsys: Captured
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(GOOD)
    (tmp_path / "store").mkdir()
    assert exit_code(ending(KeyError("no\nsuch")), ["--config", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (kept,) = (tmp_path / "store" / "logs").glob("mona-*.txt")
    assert line.endswith(f"KeyError: 'no\\nsuch' (not foreseen: the traceback is in {kept})")
    text = kept.read_text()
    assert f"mona {__version__}" in text
    assert "Traceback (most recent call last)" in text
    assert "test_outcome.py" in text


def test_a_fault_without_a_project_keeps_its_traceback_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("MONA_CONFIG", raising=False)

    @click.command()
    def command() -> None:
        import json

        json.loads("{")

    assert exit_code(command, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (kept,) = tmp_path.glob("mona-*.txt")
    assert line.startswith("mona: json failed: ")
    assert str(kept) in line


def test_a_sentence_of_a_library_is_bounded(capsys: Captured) -> None:
    assert exit_code(ending(ValueError("x" * 5000)), []) == 1
    assert len(capsys.readouterr().err) < 600


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runn"], "run"),
        (["run", "--dry"], "--dry-run"),
        (["select", "show", "a/b", "--limit", "-1"], "-1 is not in the range"),
        (["select", "show", "a/b", "--limit", "0"], "0 is not in the range"),
        (["select", "show", "a/b", "--limit", "many"], "'many' is not a valid integer"),
        (["select", "show"], "Missing argument"),
        (["run", "--quiet", "--verbose"], "pass one of them"),
    ],
)
def test_wrong_words_are_a_line(words: list[str], says: str, capsys: Captured) -> None:
    assert exit_code(cli, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mona: ")
    assert says in line


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["run", "-h"], ["lineage", "sample", "-h"]])
def test_help_is_a_success(words: list[str], capsys: Captured) -> None:
    assert exit_code(cli, words) == 0
    assert "Usage: mona" in capsys.readouterr().out


def test_the_version(capsys: Captured) -> None:
    assert exit_code(cli, ["--version"]) == 0
    assert capsys.readouterr().out == f"mona {__version__}\n"


def test_control_characters_are_escaped_and_breaks_are_spaces() -> None:
    assert printable("a\tb\r\nc\x00\x9b\x7f") == "a b  c\\u0000\\u009b\\u007f"
    assert printable("Größe 数 🙂") == "Größe 数 🙂"


def _own_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"cd '{ROOT}' && set -o pipefail; {script}"
    return subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("$PYTHON -m orchestration.cli -h | true", (0, 141)),
        ("$PYTHON -m orchestration.cli check --config none.yaml >&-", (2,)),
        ("$PYTHON -m orchestration.cli check --config none.yaml 2>&-", (2,)),
        ("$PYTHON -m orchestration.cli -h > /dev/full", (1,)),
    ],
)
def test_a_closed_or_full_standard_output_is_no_traceback(
    script: str, code: tuple[int, ...]
) -> None:
    done = _own_process(script)
    assert done.returncode in code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C"},
    ],
)
def test_a_locale_without_unicode_is_no_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "größe.yaml"
    config.write_text(GOOD.replace("rows.jsonl", "数.jsonl"), encoding="utf-8")
    done = _own_process(f"$PYTHON -m orchestration.cli check --config '{config}'", **environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(line.startswith("mona: ") for line in done.stderr.splitlines()), done.stderr
    assert "no file at" in done.stderr


def test_a_file_name_that_is_no_utf8_is_a_line(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xe9.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "check", "--config", name],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"mona: ")
    assert b"No such file" in line
