"""mona.evaluation.sandbox: faults of programs, each ended, none of them felt outside; under
bubblewrap, where it is there, and in namespaces of our own."""

from __future__ import annotations

import os
import pty
import socket
import sys
import time
from pathlib import Path

import pytest

from mona.errors import RequestError
from mona.evaluation import sandbox
from mona.evaluation.sandbox import bubblewrap, require_permission, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture(params=["bubblewrap", "namespaces"], autouse=True)
def confinement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test in both ways of confining a program."""
    found = bubblewrap()
    if request.param == "bubblewrap" and found is None:
        pytest.skip("bubblewrap is not installed, or can't confine a program here")
    wrapper = found if request.param == "bubblewrap" else None
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: wrapper)
    return str(request.param)


# Calls by number, for what Python has no function for; raises the call's error.
CALL = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    number = {"x86_64": x86, "aarch64": arm}[platform.machine()]
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


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
        ("import asyncio, threading\nseen = []\n"
         "thread = threading.Thread(target=seen.append, args=(1,))\nthread.start()\n"
         "async def f():\n    await asyncio.sleep(0.01)\n    seen.append(2)\n"
         "thread.join()\nasyncio.run(f())", "assert seen == [1, 2]", "passed", ""),
        ("import bisect, collections, datetime, decimal, fractions, functools, heapq, itertools\n"
         "import json, random, statistics, string, tempfile, time, typing, zoneinfo\n"
         "time.sleep(0.01)\nrandom.seed(1)\nnow = datetime.datetime.now()",
         "with tempfile.TemporaryFile() as file:\n    file.write(b'x')", "passed", ""),
        ("import os\nwhile True:\n    os.fork()", "", "failed", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "", "failed", "PermissionError"),
        ("open('big', 'wb').write(bytes(64 << 20))", "", "failed", "File too large"),
        ("import os\nknown = {'PYTHONHASHSEED', 'PYTHONUTF8', 'LC_CTYPE', 'PWD'}\n"
         "assert not set(os.environ) - known",
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


def test_nothing_outside_is_read_written_or_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("x")
    for act in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"open({str(kept)!r})",
        f"open({__file__!r})",
        f"import os; os.listdir({str(Path.home().parent / 'nobody')!r})",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "import os; os.listdir('/run')",
        "import os; os.listdir('/sys')",
    ):
        outcome = run_program(act, "")
        assert (outcome.status, outcome.detail[:17]) == ("failed", "FileNotFoundError"), act
    for place in ("/", "/usr", "/dev", sys.prefix):
        outcome = run_program(f"open({place + '/new'!r}, 'w')", "")
        assert "Read-only file system" in outcome.detail, outcome
    assert list(tmp_path.iterdir()) == [kept]
    assert run_program("import os", "assert set(os.listdir('/dev')) == "
                       "{'null', 'zero', 'urandom'}\nassert len(os.urandom(8)) == 8\n"
                       "assert open('/dev/zero', 'rb').read(2) == bytes(2)\n"
                       "open('/dev/null', 'w').write('x')").status == "passed"  # fmt: skip


def test_no_fifo_and_no_terminal_can_be_written(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    master, slave = pty.openpty()
    try:
        for path in (str(fifo), os.ttyname(slave), "/dev/tty", "/dev/console", "/dev/ptmx"):
            outcome = run_program(f"import os\nos.open({path!r}, os.O_WRONLY | os.O_NONBLOCK)", "")
            assert outcome.detail.startswith("FileNotFoundError"), outcome
        assert "PermissionError" in run_program("import os\nos.mkfifo('mine')", "").detail
        assert os.read(reader, 1) == b""
    finally:
        for descriptor in (reader, master, slave):
            os.close(descriptor)


REFUSED = {
    "io_uring_setup": "call(425, 425, 4, ctypes.addressof(ctypes.create_string_buffer(120)))",
    "io_uring_enter": "call(426, 426, 3, 1, 0, 0, 0, 0)",
    "io_uring_register": "call(427, 427, 3, 0, 0, 0)",
    "shmget": "call(29, 194, 0, 1 << 33, 0o1600)",
    "shmat": "call(30, 196, 0, 0, 0)",
    "msgget": "call(68, 186, 0, 0o1600)",
    "memfd_create": "os.memfd_create('more')",
    "unshare": "call(272, 97, 0x10000000)",
    "clone into a user namespace": "call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)",
    "setns": "call(308, 268, 0, 0)",
    "mount": "call(165, 40, 0, 0, 0, 0, 0)",
    "ptrace": "call(101, 117, 0, 0, 0, 0)",
    "process_vm_readv": "call(310, 270, 1, 0, 0, 0, 0, 0)",
    "bpf": "call(321, 280, 0, 0, 0)",
    "perf_event_open": "call(298, 241, 0, 0, 0, 0, 0)",
    "userfaultfd": "call(323, 282, 0)",
    "keyctl": "call(250, 219, 0, 0, 0)",
    "execve": "os.execv('/bin/true', ['true'])",
    "socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "raising a limit": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
}  # fmt: skip


def test_what_the_filter_and_the_limits_refuse() -> None:
    program = f"""{CALL}
let = []
for what, act in {REFUSED!r}.items():
    try:
        exec(act)
    except PermissionError:
        continue
    except ValueError as error:
        if "not allowed to raise" in str(error):
            continue
    except Exception as error:
        what += f" ({{error}})"
    let.append(what)
"""
    outcome = run_program(program, "assert not let, ', '.join(let)")
    assert outcome.status == "passed", outcome


def test_clone3_is_unknown_to_a_program() -> None:
    assert "Errno 38" in run_program(CALL + "call(435, 435, 0, 0)", "").detail


def test_the_folder_in_memory_has_an_end() -> None:
    fill = "for n in range(4):\n    open(f'{n}', 'wb').write(bytes(15 << 20))"
    assert "No space left" in run_program(fill, "").detail


def test_a_socket_of_the_machine_is_out_of_reach(tmp_path: Path) -> None:
    """By its path: through the file system, whatever call would connect to it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        outcome = run_program(f"import os\nos.stat({str(tmp_path / 'socket')!r})", "")
        assert outcome.detail.startswith("FileNotFoundError")


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


def test_nothing_runs_without_permission() -> None:
    with pytest.raises(RequestError, match="set evaluation.allow_code_execution"):
        require_permission(False)
    require_permission(True)


def test_nothing_runs_where_nothing_can_confine_it(
    confinement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = "raise ValueError('it ran')"
    monkeypatch.setattr(sandbox, "_DEVICES", ("/dev/null", "/dev/never"))
    with pytest.raises(RequestError, match="can't be confined on this machine"):
        run_program(ran, "")
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    monkeypatch.setattr(sandbox, "_FOLDER_MEGABYTES", "no size")
    with pytest.raises(RequestError, match="can't be confined on this machine: mount tmpfs"):
        run_program(ran, "")


def test_a_bubblewrap_that_fails_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap.__wrapped__() is None
