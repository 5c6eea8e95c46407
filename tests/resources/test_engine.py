"""Progress as it is seen: a bar on a terminal, lines off it, nothing when it is unwanted."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from resources import engine
from resources.engine import progress_bar

ROOT = Path(__file__).resolve().parents[2]
_BAR = """
import time
from resources.engine import progress_bar
with progress_bar("reading fruit", 40, "rows") as advance:
    for _ in range(4):
        time.sleep(0.12)
        advance(10)
"""


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left() -> None:
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    done = subprocess.Popen([sys.executable, "-c", _BAR], cwd=ROOT, stderr=inner)
    os.close(inner)
    shown = b""
    while True:
        try:
            part = os.read(outer, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(outer)
    assert done.wait() == 0
    assert b"reading fruit" in shown
    assert b"rows/s" in shown
    assert b"00:0" in shown  # how long it took, and how long is left
    assert b"<" in shown
    assert b"\r" in shown


def test_off_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(engine.time, "monotonic", lambda: now)
    with progress_bar("reading fruit", 1000, "rows") as advance:
        for _ in range(25):
            now += 1.0
            advance(40)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # after 10 and 20 seconds, and the last
    assert lines[0].startswith("reading fruit:  40% 400/1000 rows [00:10<00:15, 40.00 rows/s]")
    assert lines[-1].startswith("reading fruit: 100% 1000/1000 rows")


def test_a_total_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading fruit", None, "rows") as advance:
        advance(7)
    assert capsys.readouterr().err.startswith("reading fruit: 7 rows [00:0")


def test_nothing_is_shown_when_it_is_unwanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress_bar("reading fruit", 10, "rows") as advance:
        advance(10)
    assert capsys.readouterr().err == ""
