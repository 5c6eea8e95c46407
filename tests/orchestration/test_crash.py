"""kill -9 in the middle of encoding: nothing committed is lost, nothing is encoded twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.home import open_instance
from tests.orchestration.conftest import ForwardCount, Project
from tests.orchestration.test_incremental import codes_by_id

ROOT = Path(__file__).resolve().parents[2]
FRUIT = 120

# Dies at the n-th commit to the store: before it, or just after it.
KILLED_RUN = """
import os, signal, sys
from resources.store import Store
from orchestration import cli
config, n, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
append, seen = Store.append, 0
def dying(self, name, rows):
    global seen
    seen += 1
    if seen == n and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, name, rows)
    if seen == n and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
Store.append = dying
sys.argv = ["mona", "run", "--dataset", "fruit", "--upto", "sae_codes", "--config", config]
cli.main()
"""


def killed(project: Project, commit: int, when: str) -> None:
    words = [sys.executable, "-c", KILLED_RUN, str(project.config_path), str(commit), when]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_a_killed_run_goes_on_from_its_last_commit(
    project: Project, forwards: ForwardCount
) -> None:
    # Without the token cache nothing of the SAE's own pass is left to encode from.
    project.settings["models"]["tiny"]["token_cache_gb"] = 0.0
    project.run(datasets=("fruit",), upto="sae")
    store, saved = project.root / "store", project.root / "saved"
    shutil.copytree(store, saved)
    project.run(datasets=("fruit",), upto="sae_codes")
    reference = codes_by_id(project, "codes.fruit.")
    # Odd commits are activations, even ones codes: inside a window, and between two.
    for commit, when in ((4, "after"), (5, "before"), (5, "after"), (6, "before"), (8, "after")):
        shutil.rmtree(store)
        shutil.copytree(saved, store)
        killed(project, commit, when)
        committed = len(codes_by_id(project, "codes.fruit."))
        forwards.take()
        project.run(datasets=("fruit",), upto="sae_codes")
        assert forwards.take() == FRUIT - committed
        found = codes_by_id(project, "codes.fruit.")
        assert found.keys() == reference.keys()
        for sample_id, code in reference.items():
            assert found[sample_id] == pytest.approx(code, rel=2e-3)
        with open_instance(project.config) as instance:
            pools = instance.event_log_storage.get_concurrency_keys()
            for pool in pools:
                info = instance.event_log_storage.get_concurrency_info(pool)
                assert not info.pending_steps
                assert info.active_slot_count == 0
