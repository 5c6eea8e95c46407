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
SCRIPT = """
set -u
store=$1; config=$2; python=$3
mona() { "$python" -m orchestration.cli "$@" --config "$config" 2>&1; echo "exit $?"; }
fill() {
  free=$(df --output=avail --block-size=1024 "$store" | tail -1)
  dd if=/dev/zero of="$store/filler$1" bs=1024 count=$((free - $1)) status=none
}
mount -t tmpfs -o size=32m none "$store"
mona run --dataset verse --upto raw_pool
fill 2500
echo '--- full in the middle'; mona run --dataset fruit
fill 0
echo '--- full at the start'; mona run --dataset fruit
rm "$store"/filler*
echo '--- room again'; mona run
mona select show adding/mona --dataset verse --limit 1 --json
"""


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
    words = [*SMALL_DISK, SCRIPT, "-", str(store), str(project.config_path), sys.executable]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    first, middle, start, after = done.stdout.split("---")
    assert first.endswith("exit 0\n"), done.stdout
    for part in (middle, start):
        assert part.endswith("exit 1\n"), part
        assert "Traceback" not in part
        (line,) = (line for line in part.splitlines() if line.startswith("mona: "))
        assert "the disk is full" in line
    assert "making raw_pool[verse]" not in after  # what was made before is still there
    assert "were fresh\nexit 0\n" in after
    assert after.endswith("exit 0\n")
