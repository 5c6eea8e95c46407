"""Locks of the operating system's, each with a note of who holds it.

A lock goes with its process, kill -9 and a pulled plug included, and holds across containers
and pid namespaces, in which a pid says nothing. So whether a process is alive is asked of its
lock; the note beside it is for people only.

Belongs here: taking a lock, and saying for whom one waits. What a lock protects is its user's.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mona.errors import TakenError, WorkError


@contextmanager
def held(path: Path, what: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Holds the lock file `path` for this process while the block runs.

    TakenError, naming the holder, when another process or another block has it, at once unless
    asked to wait; WorkError where the file system has no locks. `what` is named in the message.
    """
    with _locked(path, what, wait_seconds):
        _note(path).write_text(json.dumps(_identity()), encoding="utf-8")
        yield


@contextmanager
def _locked(path: Path, what: str, wait_seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # Its fallback would be a file that outlives a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        said = f"{what}: another run is working on it ({holder(path)}); wait or stop it"
        raise TakenError(said, path) from None
    except (NotImplementedError, OSError) as error:
        raise WorkError(f"{path}: can't be locked ({error})") from error
    try:
        yield
    finally:
        lock.release()


def taken(path: Path) -> bool:
    """Whether some living process holds the lock file; False when there is none."""
    if not path.exists():
        return False
    try:
        with _locked(path, path.stem, 0):
            return False
    except TakenError:
        return True


def holder(path: Path) -> str:
    """Who holds a lock, as people read it: pid, host, since when, and whether the pid is one of
    another container's."""
    try:
        noted = json.loads(_note(path).read_text(encoding="utf-8"))
        elsewhere = ""
        if noted["host"] == socket.gethostname() and noted["namespace"] != _pid_namespace():
            elsewhere = " in another container"
        return f"process {noted['pid']} on {noted['host']}{elsewhere}, since {noted['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "process unknown"


def _note(path: Path) -> Path:
    return path.with_suffix(".holder")


def _identity() -> dict[str, str | int | None]:
    started = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "namespace": _pid_namespace(),
        "started": started.strftime("%Y-%m-%d %H:%M:%S UTC"),
    }


def _pid_namespace() -> str | None:
    """What tells this process's pids from another container's; None where there is no such
    thing."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
