"""The real `dagster dev` with its daemon: a file changes and, without a hand, the right
partitions, and only they, are made new down to the selection. Takes a few minutes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dagster as dg
import pytest

from assets.keys import RAW_POOL, SAE, selection
from orchestration.home import open_instance
from orchestration.taints import CHECK
from tests.orchestration.conftest import (  # noqa: F401
    Project,
    findings,
    project,
    sums,
)
from tests.orchestration.searching import search

pytestmark = pytest.mark.acceptance
PATIENCE_SECONDS = 400


@contextmanager
def served(project: Project, python: str = sys.executable) -> Iterator[str]:  # noqa: F811
    """`mona ui` on a free port, whose address is given, while the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "orchestration.cli", "ui", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--config", str(project.config_path)],
        stdout=(project.root / "ui.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield f"http://127.0.0.1:{port}"
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


def asked(address: str, query: str) -> dict[str, Any] | None:
    """What the UI's GraphQL answers; None while it does not."""
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(
        f"{address}/graphql", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
            return data
    except OSError:
        return None


def shown_check(address: str) -> dict[str, Any]:
    """The last result of the subset's taint check, as the UI shows it."""
    path = json.dumps(selection("adding", "mona").path)
    found = asked(
        address,
        f'{{assetCheckExecutions(assetKey: {{path: {path}}}, checkName: "{CHECK}", limit: 1)'
        " {evaluation {success description}}}",
    )
    assert found is not None
    (newest,) = found["assetCheckExecutions"]
    evaluation: dict[str, Any] = newest["evaluation"]
    return evaluation


def test_a_withdrawal_beside_the_ui_leaves_nothing_and_the_sweep_makes_anew(
    project: Project,  # noqa: F811
) -> None:
    project.settings["datasets"].pop("verse")
    project.settings["automation"] = {"sweep": "* * * * *"}
    project.run()
    subset, table = selection("adding", "mona"), "selection.adding.mona.fruit.tiny"
    sample = project.store.read(table, ["sample_id"]).column("sample_id")[0].as_py()
    (found,) = project.store.rows("pool.fruit", ["messages"], [sample]).column("messages")
    texts = [message["content"] for message in found.as_py()]
    with served(project) as address:
        wait_until(lambda: asked(address, "{version}") is not None, "the UI does not answer")
        assert {"pool", "codes", "dagster"} <= set(search(project.root, sample, texts))
        tables = "metadataEntries {... on TableMetadataEntry {table {records}}}"
        top = f"{{assetNodes {{assetMaterializations {{{tables}}}}}}}"
        assert texts[1] in json.dumps(asked(address, top))
        # A browser that asks all the while.
        stop = threading.Event()
        browser = threading.Thread(target=ask_until, args=(stop, address, top))
        browser.start()
        command = [
            sys.executable,
            "-m",
            "orchestration.cli",
            "withdraw",
            "--yes",
            "--sample",
            sample,
        ]
        command += ["--reason", "asked by its author", "--config", str(project.config_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert search(project.root, sample, texts) == {}
        stop.set()
        browser.join()
        shown = json.dumps(asked(address, top))
        assert texts[1] not in shown
        assert "[withdrawn]" in shown
        check = shown_check(address)
        assert not check["success"]
        assert "asked by its author" in check["description"]
        # Nothing follows changes here: the sweep alone makes it anew, step by step.
        wait_until(
            lambda: made(project, subset, "fruit|tiny") == 2,
            (project.root / "ui.log").read_text()[-2_000:],
        )
        wait_until(lambda: shown_check(address)["success"], "the taint did not clear")
        assert search(project.root, sample, texts) == {}
    assert search(project.root, sample, texts) == {}
    assert made(project, RAW_POOL, "fruit") == 2
    assert made(project, SAE, "tiny") == 1
    assert set(project.status().values()) == {"fresh"}
    assert sample not in project.store.sample_ids(table).to_pylist()
    assert findings(project) == []


def ask_until(stop: threading.Event, address: str, query: str) -> None:
    while not stop.is_set():
        asked(address, query)
