"""One generated program with its tests, in a process that can harm nothing and reach nobody.

The process sees the interpreter's own files, three devices and an empty folder in memory: no other
file of the machine, no network, no terminal. bubblewrap sees to that where it is installed and
works, else namespaces of our own (`mona.evaluation.sandbox_child`); either way a filter lets only
the system calls of an ordinary program through, and limits hold time and memory. Linux only. Where
the process can't be confined, nothing is run.

This guards the machine against a program and the score against one that ends early or prints
what a passing one might. It is no proof against a program written to read the token out of
its own interpreter, nor against a fault of the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from mona.errors import RequestError
from mona.evaluation.sandbox_child import REFUSED

WALL_SECONDS = 6.0
_MEGABYTE = 1 << 20
_FOLDER_MEGABYTES = 32
_LIMITS = {
    "RLIMIT_CPU": 5,
    "RLIMIT_AS": 1024 * _MEGABYTE,
    "RLIMIT_FSIZE": 16 * _MEGABYTE,
    "RLIMIT_NOFILE": 64,
    "RLIMIT_CORE": 0,
}
_REPORT_BYTES = 4096
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# What an interpreter and the libraries it loads may need, where there is such a thing.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
_CHILD = Path(__file__).with_name("sandbox_child.py")
# Of bubblewrap where it can't do what it was asked, of the interpreter where it can't begin.
_NOT_STARTED = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: `status`, and one line on it (the last line of its error, the limit
    that ended it); empty for a pass."""

    status: Literal["passed", "failed", "timed out", "killed"]
    detail: str = ""


def require_permission(allow_code_execution: bool) -> None:
    """RequestError unless the request allows generated programs and the machine confines them."""
    if not allow_code_execution:
        raise RequestError(
            "this task runs programs that the model writes: set evaluation.allow_code_execution"
        )
    run_program("", "", wall_seconds=WALL_SECONDS)


def run_program(program: str, tests: str, *, wall_seconds: float = WALL_SECONDS) -> Outcome:
    """Runs `program`, then `tests` in the same module.

    A pass is a run past the last line of the tests: the process then sends back a random
    token, so one that exits earlier, with whatever status, has failed. Raises RequestError
    where the process can't be confined.
    """
    if sys.platform != "linux":
        raise RequestError(f"generated programs can't be confined on {sys.platform}: Linux only")
    return _run(program, tests, wall_seconds, bubblewrap())


@cache
def bubblewrap() -> str | None:
    """The path of bubblewrap, where it is installed and can confine a program here."""
    path = shutil.which("bwrap")
    if path is not None:
        # An old one, or a kernel that grants it nothing.
        with contextlib.suppress(RequestError):
            if _run("", "", WALL_SECONDS, path).status == "passed":
                return path
    return None


def _run(program: str, tests: str, wall_seconds: float, wrapper: str | None) -> Outcome:
    token = secrets.token_hex(16)
    # -P -s and an empty environment are -I; -I itself would ignore the hash seed, and a
    # program that depends on the order of a set must end alike each time.
    python = [sys.executable, "-P", "-s", "-B"]
    with tempfile.TemporaryDirectory(prefix="mona-program-") as folder:
        request = {
            "program": program,
            "tests": tests,
            "token": token,
            "root": folder if wrapper is None else None,
            "shown": [*_shown(), *_DEVICES],
            "megabytes": _FOLDER_MEGABYTES,
            "limits": _LIMITS,
        }
        process = subprocess.Popen(
            [*python, str(_CHILD)]
            if wrapper is None
            else [*_wrapped(wrapper), *python, "/child.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        try:
            report, in_time = _talk(process, json.dumps(request).encode(), wall_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return _outcome(report, token, process.returncode if in_time else None)


def _shown() -> list[str]:
    """The files and folders of the machine that a program sees, none inside another."""
    interpreter = Path(sys.executable)
    wanted = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, str(interpreter.resolve().parent)]
    kept: list[str] = []
    for path in sorted({*_SYSTEM, *(str(Path(each).absolute()) for each in wanted)}):
        inside = any(Path(path).is_relative_to(outer) for outer in kept)
        if Path(path).exists() and not inside:
            kept.append(path)
    if "/" in kept:
        raise RequestError("generated programs can't be confined: the interpreter's folder is /")
    return kept


def _wrapped(wrapper: str) -> list[str]:
    """bubblewrap's command line, up to the command that it runs."""
    shown: list[str] = []
    for path in _shown():
        if Path(path).is_symlink():
            shown += ["--symlink", str(Path(path).readlink()), path]
        else:
            shown += ["--ro-bind", path, path]
    for device in _DEVICES:
        shown += ["--dev-bind", device, device]
    alone = ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    memory = ["--size", str(_FOLDER_MEGABYTES * _MEGABYTE), "--tmpfs", "/tmp"]
    return [
        *(wrapper, *alone, "--uid", "65534", "--gid", "65534", "--die-with-parent"),
        # The memory first: Python's own folder may itself lie under /tmp.
        *(*memory, *shown, "--ro-bind", str(_CHILD), "/child.py", "--remount-ro", "/"),
        *("--dir", "/tmp/program", "--chdir", "/tmp/program", "--"),
    ]


def _talk(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[str, bool]:
    """Sends the request; what came back, and whether the process ended in time."""
    deadline = time.monotonic() + seconds
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(request)
    report = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and len(report) <= _REPORT_BYTES:
            if selector.select(left):
                received = os.read(process.stdout.fileno(), _REPORT_BYTES)
                if not received:
                    break
                report += received
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "", False
    return report[:_REPORT_BYTES].decode("utf-8", "replace"), True


def _outcome(report: str, token: str, status: int | None) -> Outcome:
    if status is None:
        return Outcome("timed out", "did not end in time")
    if status == _NOT_STARTED:
        raise RequestError("generated programs can't be confined on this machine: no sandbox began")
    if status == REFUSED:
        raise RequestError(f"generated programs can't be confined on this machine: {report}")
    if status != 0:
        name = signal.Signals(abs(status) % 128).name
        return Outcome("killed", name)
    if report == token:
        return Outcome("passed")
    if report.startswith("MemoryError"):
        return Outcome("killed", "memory limit")
    return Outcome("failed", report.replace(token, "") or "ended before its tests did")
