"""A disk that fills up: one line, nothing lost, and the next run finishes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestration.conftest import Project

ROOT = Path(__file__).resolve().parents[2]
# A small disk that only this shell and its children see, and that is gone with them.
SMALL_DISK = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
# The commands one after the other in one process, which imports what is heavy once.
SCRIPT = """
import shutil, sys, yaml
from pathlib import Path
from tests.orchestration import test_cli
from tests.orchestration.conftest import Project

store, config = Path(sys.argv[1]), Path(sys.argv[2])
project = Project(config.parent, yaml.safe_load(config.read_text()))

def mona(*words):
    done = test_cli.mona(project, *words)
    print(f"{done.stderr}{done.stdout}exit {done.returncode}", flush=True)

def fill(left):
    size = shutil.disk_usage(store).free - left * 1024
    (store / f"filler{left}").write_bytes(b"0" * size)

mona("run", "--dataset", "verse", "--upto", "raw_pool")
fill(2500)
print("--- full in the middle")
mona("run", "--dataset", "fruit")
fill(0)
print("--- full at the start")
mona("run", "--dataset", "fruit")
for path in store.glob("filler*"):
    path.unlink()
print("--- room again")
mona("run")
mona("select", "show", "adding/mona", "--dataset", "verse", "--limit", "1", "--json")
"""
MOUNT = 'mount -t tmpfs -o size=32m none "$1" && exec "$3" -c "$4" "$1" "$2"'


def small_disks_can_be_made(folder: Path) -> bool:
    words = [*SMALL_DISK, 'mount -t tmpfs -o size=1m none "$1"', "-", str(folder)]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_disk_is_one_line_and_loses_nothing(project: Project) -> None:
    store = project.root / "store"
    store.mkdir()
    if not small_disks_can_be_made(store):
        pytest.skip("needs the right to mount a file system of its own")
    given = ["-", str(store), str(project.config_path), sys.executable, SCRIPT]
    words = [*SMALL_DISK, MOUNT, *given]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    first, middle, start, after = done.stdout.split("---")
    assert first.endswith("exit 0\n"), done.stdout
    for part in (middle, start):
        assert part.endswith("exit 1\n"), part
        assert "Traceback" not in part
        (line,) = (line for line in part.splitlines() if line.startswith("mona: "))
        assert "the disk is full" in line
    assert "making raw_pool[verse]" not in after  # what was made before is still there
    assert " were fresh" in after
    assert after.count("exit 0\n") == 2
    assert after.endswith("exit 0\n")
