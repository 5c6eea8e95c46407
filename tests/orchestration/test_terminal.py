"""Tables keep their cells whole; only a text is cut, and only on a narrow terminal. Names of kinds
are those of their register."""

from __future__ import annotations

import sys

import click
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from mona.registry import EXPORTS
from orchestration.cli import cli
from orchestration.terminal import KindName, print_table

Captured = pytest.CaptureFixture[str]
ROWS = [
    {"id": "a" * 64, "path": "/data/" + "b" * 300, "text": "数" * 100, "n": 1},
    {"id": "c", "path": "d", "text": "x\n\x1b[31my", "n": 22},
]


def test_a_table_in_a_pipe_is_never_folded(capsys: Captured) -> None:
    print_table(ROWS, ["id", "path", "text", "n"], "empty", shorten="text")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for value in ROWS[0].values():
        assert str(value) in lines[1]
    assert "x \\u001b[31my" in lines[2]
    assert cell_len(lines[1].rpartition("  ")[0]) == cell_len(lines[2][: lines[2].rindex("22")]) - 2


def test_on_a_terminal_only_the_text_is_cut(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "110")
    print_table([ROWS[0]], ["id", "text", "n"], "empty", shorten="text")
    _, line = capsys.readouterr().out.splitlines()
    assert "a" * 64 in line
    assert "…" in line
    assert cell_len(line) <= 110
    monkeypatch.setenv("COLUMNS", "40")
    print_table([ROWS[0]], ["id", "text", "n"], "empty", shorten="text")
    _, line = capsys.readouterr().out.splitlines()
    assert "a" * 64 in line
    assert line.endswith("  1")


def test_no_rows_say_so(capsys: Captured) -> None:
    print_table([], ["id"], "nothing there")
    assert capsys.readouterr().out == "nothing there\n"


def test_an_option_lists_what_its_register_has(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if somebody's package were installed.
    monkeypatch.setattr(EXPORTS, "names", lambda: ("jsonl", "spoken"))
    shown = CliRunner().invoke(cli, ["export", "--help"])
    assert "--format [jsonl|spoken]" in shown.output
    parameter = click.Option(["--format"], type=KindName(EXPORTS))
    context = click.Context(click.Command("export"))
    assert parameter.type_cast_value(context, "spoken") == "spoken"
    assert [found.value for found in parameter.shell_complete(context, "sp")] == ["spoken"]
    wrong = CliRunner().invoke(cli, ["export", "a/b", "--out", "x", "--format", "spokn"])
    assert wrong.exit_code == 2
    assert "'spokn' is no export format; did you mean 'spoken'? There are jsonl" in wrong.output
