"""The real `dagster dev` with its daemon: a file changes and, without a hand, the right
partitions, and only they, are made new down to the selection. Takes a few minutes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import dagster as dg
import pytest

from assets.keys import RAW_POOL, SAE, selection
from orchestration.home import open_instance
from tests.orchestration.conftest import Project, make_project, project, sums  # noqa: F401

pytestmark = pytest.mark.acceptance
PATIENCE_SECONDS = 400


@contextmanager
def served(project: Project) -> Iterator[None]:  # noqa: F811
    """`mona ui` on a free port while the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "orchestration.cli", "ui", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--config", str(project.config_path)],
        stdout=(project.root / "ui.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def made(project: Project, key: dg.AssetKey, partition: str) -> int:  # noqa: F811
    with open_instance(project.config) as instance:
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
        return len(instance.fetch_materializations(wanted, limit=100).records)


def wait_until(condition: Callable[[], bool], log: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, log
        time.sleep(3)


def test_a_changed_file_moves_its_own_partitions(project: Project) -> None:  # noqa: F811
    project.settings["automation"] = {"follow_changes": True}
    project.run()
    subset = selection("adding", "mona")
    project.write_rows("verse", [*project.rows("verse"), *sums(300, 3)])
    with served(project):
        wait_until(
            lambda: made(project, subset, "verse|tiny") == 2,
            (project.root / "ui.log").read_text()[-2_000:],
        )
        # Time for anything that should not follow to follow.
        time.sleep(60)
    assert made(project, RAW_POOL, "verse") == 2
    assert made(project, RAW_POOL, "fruit") == 1
    assert made(project, SAE, "tiny") == 1
    assert made(project, subset, "fruit|tiny") == 1
    assert made(project, subset, "verse|tiny") == 2
    assert set(project.status().values()) == {"fresh"}
    ids = set(project.store.sample_ids("selection.adding.mona.verse.tiny").to_pylist())
    assert ids <= set(project.store.sample_ids("pool.verse").to_pylist())
