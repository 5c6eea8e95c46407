"""One generated program with its tests, in a process that can harm nothing and reach nobody.

What the process may do is `mona.evaluation.sandbox_child`; here are its limits, its start and
its end. Linux only: namespaces that the kernel grants to every user, a system call filter and
resource limits. Where one of them can't be had, nothing is run.

This guards the machine against a program and the score against one that ends early or prints
what a passing one might. It is no proof against a program written to read the token out of
its own interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
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
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="mona-program-") as folder:
        request = {
            "program": program,
            "tests": tests,
            "token": token,
            "folder": folder,
            "megabytes": _FOLDER_MEGABYTES,
            "limits": _LIMITS,
        }
        # -P -s and an empty environment are -I; -I itself would ignore the hash seed, and a
        # program that depends on the order of a set must end alike each time.
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", str(Path(__file__).with_name("sandbox_child.py"))],
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
