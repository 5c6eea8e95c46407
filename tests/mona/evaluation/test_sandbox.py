"""mona.evaluation.sandbox: faults of programs, each ended, none of them felt outside."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from mona.errors import RequestError
from mona.evaluation import sandbox
from mona.evaluation.sandbox import require_permission, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.mark.parametrize(
    ("program", "tests", "status", "detail"),
    [
        ("def f(x):\n    return x + 1", "assert f(1) == 2", "passed", ""),
        ("import math, re, threading", "assert math.pi > 3", "passed", ""),
        ("open('mine', 'w').write('x')", "import os\nassert len(os.listdir()) == 1", "passed", ""),
        ("def f(x):\n    return x", "assert f(1) == 2, 'one off'", "failed", "one off"),
        ("def f(", "", "failed", "SyntaxError"),
        ("raise ValueError('first\\nsecond')", "", "failed", "ValueError: first"),
        ("import sys\nsys.exit(0)", "assert False", "failed", "SystemExit: 0"),
        ("import os\nos._exit(0)", "assert False", "failed", "ended before its tests did"),
        ("input()", "", "failed", "EOFError"),
        ("blocks = [bytearray(1 << 30) for _ in range(64)]", "", "killed", "memory limit"),
        ("import ctypes\nctypes.string_at(0)", "", "killed", "SIGSEGV"),
        ("import os\nwhile True:\n    os.fork()", "", "failed", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "", "failed", "PermissionError"),
        ("open('big', 'wb').write(bytes(64 << 20))", "", "failed", "File too large"),
        ("import os\nassert not set(os.environ) - {'PYTHONHASHSEED', 'PYTHONUTF8', 'LC_CTYPE'}",
         "", "passed", ""),
    ],
)  # fmt: skip
def test_how_a_program_ends(program: str, tests: str, status: str, detail: str) -> None:
    outcome = run_program(program, tests)
    assert outcome.status == status, outcome
    assert detail in outcome.detail
    assert "\n" not in outcome.detail


@pytest.mark.parametrize(
    "program", ["while True:\n    pass", "while True:\n    print('x' * 1_000_000)"]
)
def test_a_program_without_end_is_ended(program: str) -> None:
    started = time.monotonic()
    assert run_program(program, "", wall_seconds=0.7).status == "timed out"
    assert time.monotonic() - started < 5


def test_cpu_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sandbox._LIMITS, "RLIMIT_CPU", 1)
    assert run_program("while True:\n    pass", "").status == "killed"


def test_what_a_program_prints_is_no_pass() -> None:
    guess = (
        "import os\nfor n in range(64):\n    try: os.write(n, b'0' * 32)\n    except OSError: pass"
    )
    assert run_program(f"print('passed')\n{guess}\nos._exit(0)", "").status == "failed"
    flood = "import os\nfor n in range(3, 64):\n  try:\n    while True: os.write(n, b'0' * 4096)\n"
    assert run_program(f"{flood}  except OSError: pass", "", wall_seconds=1).status != "passed"


def test_nothing_outside_is_written_or_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("x")
    for act in (f"open({str(tmp_path / 'new')!r}, 'w')", f"import os; os.remove({str(kept)!r})"):
        outcome = run_program(act, "")
        assert outcome.status == "failed"
        assert "Read-only file system" in outcome.detail
    assert list(tmp_path.iterdir()) == [kept]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_program("open('mine', 'w').write('x')", "").status == "passed"
    assert not list(tmp_path.iterdir())


def test_no_network_not_even_this_machines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"
        assert run_program(program, "").status == "failed"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_sets_have_one_order_in_every_run() -> None:
    program = "order = ''.join({'a', 'b', 'c', 'd', 'e'})\nraise ValueError(order)"
    assert len({run_program(program, "").detail for _ in range(4)}) == 1


def test_nothing_runs_without_permission_or_confinement(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="set evaluation.allow_code_execution"):
        require_permission(False)
    require_permission(True)
    monkeypatch.setattr(sandbox, "_FOLDER_MEGABYTES", "no size")
    with pytest.raises(RequestError, match="can't be confined on this machine: mount tmpfs"):
        require_permission(True)
