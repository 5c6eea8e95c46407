"""What others wrote never moves a cursor, hides or reorders what a terminal shows."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from orchestration.cli import main
from orchestration.terminal import plain_output, print_table

# Clears a screen, sets a title, deletes, C1's sequence introducer, reorders, isolates, rings.
ACTS = "\x1b[2J \x1b]0;mine\x07 \x08\x7f \x9b31m \u202egpj.exe\u2066 \u200f \x00 \ud800"
ACTING = set(ACTS) - set(" [2J]0;mine31mgpj.exe")


class Terminal(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def shown(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode("utf-8")


def terminals(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Terminal]:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


def test_whatever_is_printed_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = terminals(monkeypatch)
    with plain_output():
        print(f"a row: {ACTS}\tand\nmore\r")
        print(json.dumps({"text": ACTS}, ensure_ascii=False))
        print_table([{"id": "1", "text": ACTS}], ["id", "text"], "none")
        print(f"1/2\r2/2\n{ACTS}", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == (out, err)
    for terminal in (out, err):
        assert not ACTING & set(terminal.shown())
    first, more, dumped, *_ = out.shown().splitlines()
    assert first.startswith("a row: \\u001b[2J \\u001b]0;mine\\u0007")
    assert first.endswith("\tand")
    assert more == "more\\u000d"
    assert json.loads(dumped) == {"text": ACTS}
    assert err.shown().startswith("1/2\r2/2\n")
    out.write("still open")


def test_ordinary_text_of_any_script_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = terminals(monkeypatch)
    text = "Grüße, 水は青い, مرحبا, בוקר, 👩\u200d🚀, a\u0301\n\tx\n"
    with plain_output():
        print(text, end="")
    assert out.shown() == text


def mona(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    out, err = terminals(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["mona", *words])
    with pytest.raises(SystemExit):
        main()
    out.flush()
    err.flush()
    return out.shown() + err.shown()


def test_rows_and_names_are_shown_plain_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = ACTS.replace("\ud800", "").replace("\x00", "")
    rows = [{"instruction": f"{acts} {n}", "output": acts} for n in range(3)]
    named = tmp_path / "a\x1b[2Jb\u202e.jsonl"
    named.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no\n", encoding="utf-8")
    config = tmp_path / "project.yaml"
    source = {"name": "own", "path": str(named), "licence": "MIT"}
    settings = {
        "store": {"root": str(tmp_path / "store")},
        "datasets": {"rows": {"sources": [source], "max_bad_rows": 0.9}},
        "models": {
            "tiny": {
                "language_model": {"path": str(tmp_path)},
                "sae": {"train": {"datasets": ["rows"], "latents": 8, "k": 2, "tokens": 10_000}},
            }
        },
        "targets": {"task": {"reader": "pool", "examples": {"path": str(named)}}},
        "recipes": {"mona": {"budget": {"count": 1}}},
    }
    config.write_text(yaml.safe_dump(settings, allow_unicode=True))
    text = mona(monkeypatch, "pool", "show", "--config", str(config))
    assert "u001b[2J" in text or "x1b[2J" in text
    assert not ACTING & set(text)
    aside = mona(monkeypatch, "pool", "show", "--set-aside", "--config", str(config))
    assert not ACTING & set(aside)
    wrong = mona(monkeypatch, "check", "--config", str(tmp_path / "gone\x1b[2J\u202e.yaml"))
    assert wrong.startswith("mona: ")
    assert not ACTING & set(wrong)
