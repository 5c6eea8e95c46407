"""Locks that go with their process, and the note of who holds them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mona.errors import TakenError, WorkError
from resources.locks import held, holder, taken

HOLD = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
    "print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another process that holds a lock file; what is put before it as a command."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, *before: str) -> subprocess.Popen[str]:
        command = [*before, sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != "held\n":
            pytest.skip(f"{before[0]} is not permitted here")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_lock_goes_with_a_killed_process(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    path = tmp_path / "a.lock"
    assert not taken(path)
    assert not path.exists()
    process = hold(path)
    assert taken(path)
    with pytest.raises(TakenError, match="a table: another run is working on it"):
        held(path, "a table").__enter__()
    process.kill()
    process.wait()
    assert not taken(path)
    with held(path, "a table"):
        assert taken(path)
        assert f"on {socket.gethostname()}, since 2" in holder(path)
    assert not taken(path)


def test_it_holds_across_containers(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    # There the holder's pid is 1 or 2, which here is another's.
    path = tmp_path / "a.lock"
    hold(path, "unshare", "--pid", "--fork", "--mount-proc")
    assert taken(path)


@pytest.mark.parametrize(
    ("noted", "says"),
    [
        ({"pid": 7, "host": "far", "namespace": "x", "started": "s"}, "process 7 on far, since s"),
        (
            {"pid": 1, "host": socket.gethostname(), "namespace": "x", "started": "s"},
            f"process 1 on {socket.gethostname()} in another container, since s",
        ),
        ({"pid": 7}, "process unknown"),
        ([], "process unknown"),
    ],
)
def test_who_holds_it(tmp_path: Path, noted: object, says: str) -> None:
    (tmp_path / "a.holder").write_text(json.dumps(noted))
    assert holder(tmp_path / "a.lock") == says
    (tmp_path / "a.holder").write_bytes(b"\xff{")
    assert holder(tmp_path / "a.lock") == "process unknown"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(WorkError, match=r"a\.lock: can't be locked"):
        held(tmp_path / "a.lock", "a").__enter__()
