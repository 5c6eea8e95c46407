"""Everything at once: the pool, the entries and the SAE are edited at random moments beside
`mona run`, `mona ui` with its daemon, `mona gc` and `mona withdraw`. At the end every stored code
is that of its text, encoded alone, verify finds nothing, and nothing is stuck.

Takes twenty minutes; MONA_MOVING_MINUTES says another number.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from assets.keys import RAW_POOL, SAE, SAE_CODES, label
from mona.codes import from_arrow
from mona.sample import from_records
from orchestration.definitions import build_resources
from resources.snapshot import Snapshot
from tests.acceptance.test_daemon import served
from tests.orchestration.conftest import (  # noqa: F401
    Project,
    findings,
    project,
    sums,
    verses,
)

pytestmark = pytest.mark.acceptance
MINUTES = float(os.environ.get("MONA_MOVING_MINUTES", "20"))


@dataclass
class Hand:
    """One person at the keyboard: edits files and entries, and gives commands."""

    project: Project
    draw: random.Random
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def mona(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestration.cli", *words]
        made = subprocess.run(
            [*command, "--config", str(self.project.config_path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=900,
        )
        self.done[f"{words[0]} {made.returncode}"] += 1
        # A refusal is one line that says who is in the way; anything else is a fault.
        if made.returncode not in (0, 1, 2) or "Traceback" in made.stderr:
            self.faults.append(f"{' '.join(words)}: {made.returncode}\n{made.stderr[-2_000:]}")
        return made

    def edit_rows(self) -> None:
        name = self.draw.choice(["fruit", "verse"])
        rows = self.project.rows(name)
        kind = self.draw.choice(["add", "drop", "shuffle", "replace"])
        if kind == "add":
            rows += self.draw.choice([sums, verses])(self.draw.randrange(1_000, 9_000), 6)
        elif kind == "drop":
            rows = rows[: max(20, len(rows) - 3)]
        elif kind == "shuffle":
            self.draw.shuffle(rows)
        else:
            rows[: len(rows) // 20] = sums(self.draw.randrange(1_000, 9_000), len(rows) // 20)
        self.project.write_rows(name, rows)
        self.done[f"rows: {kind}"] += 1

    def edit_entry(self) -> None:
        model = self.project.settings["models"]["tiny"]
        kind = self.draw.choice(["k", "learning rate", "max_length", "budget", "view"])
        if kind == "k":
            model["k"] = self.draw.choice([3, 4, 6])
        elif kind == "learning rate":
            model["sae"]["train"]["learning_rate"] = self.draw.choice([0.003, 0.002])
        elif kind == "max_length":
            model["max_length"] = self.draw.choice([200, 256])
        elif kind == "budget":
            count = self.draw.choice([5, 9, 14])
            self.project.settings["recipes"]["mona"]["budget"] = {"count": count}
        else:
            view = self.draw.choice(["mean", "weighted_mean"])
            self.project.settings["recipes"]["dense"] = {
                "representation": view,
                "similarity": "cosine",
                "budget": {"count": 7},
            }
        self.project.write()
        self.done[f"entry: {kind}"] += 1

    def withdraw(self) -> None:
        table = "pool.fruit"
        if self.project.store.exists(table):
            ids = self.project.store.sample_ids(table).to_pylist()
            words = ["--sample", self.draw.choice(ids), "--reason", "asked", "--yes"]
            self.mona("withdraw", *words)


def keep_running(hand: Hand, stop: threading.Event) -> None:
    while not stop.is_set():
        hand.mona("run", "--quiet")


def keep_changing(hand: Hand, stop: threading.Event) -> None:
    while not stop.wait(hand.draw.uniform(1, 12)):
        act = hand.draw.choices(["rows", "entry", "gc", "withdraw", "status"], [6, 3, 1, 1, 1])[0]
        if act == "rows":
            hand.edit_rows()
        elif act == "entry":
            hand.edit_entry()
        elif act == "withdraw":
            hand.withdraw()
        else:
            hand.mona(*(["gc", "--yes"] if act == "gc" else ["status"]))


def assert_codes_are_those_of_their_texts(project: Project) -> int:  # noqa: F811
    """How many codes were compared with an encoding of their text alone."""
    config, compared = project.config, 0
    resources = build_resources(config)
    records, store, shelf = (resources[name] for name in ("records", "store", "shelf"))
    model = shelf.resolve("tiny", config.models["tiny"])
    encoder = shelf.encoder(model)
    for dataset in config.datasets:
        pool, codes, sae_asset = (
            label(RAW_POOL, dataset),
            label(SAE_CODES, f"{dataset}|tiny"),
            label(SAE, "tiny"),
        )
        read = Snapshot.of(store, records, [pool, codes, sae_asset])
        sae = shelf.sae("tiny", str(read.record(sae_asset).about["sae"]))
        (name,) = read.record(codes).tables
        stored, texts = read.table(codes, name), read.table(pool, f"pool.{dataset}")
        ids = texts.sample_ids.to_pylist()
        found = from_arrow(stored.rows(["l1", "indices", "values"], ids))
        messages = texts.rows(["messages"], ids).column("messages").to_pylist()
        for i, text in enumerate(messages):
            states = encoder.forward([encoder.renderer.render(from_records(text))])
            alone = sae.encode(states.states, states.offsets, model.spec.k, "mean")
            span = slice(int(found.indptr[i]), int(found.indptr[i + 1]))
            here = dict(zip(found.indices[span].tolist(), found.values[span].tolist(), strict=True))
            there = dict(zip(alone.indices.tolist(), alone.values.tolist(), strict=True))
            assert here == pytest.approx(there, rel=5e-3, abs=1e-3), (dataset, ids[i])
            compared += 1
    return compared


def test_nothing_is_wrong_stuck_or_left_after_twenty_minutes_of_everything(
    project: Project,  # noqa: F811
) -> None:
    project.settings["automation"] = {"follow_changes": True, "sweep": "*/2 * * * *"}
    # Several edits may come between two readings: what a refresh may lose is tested elsewhere.
    for dataset in project.settings["datasets"].values():
        dataset["max_loss"] = 1
    project.write()
    stop = threading.Event()
    runner, editor = (Hand(project, random.Random(seed)) for seed in (1, 2))
    with served(project):
        threads = [
            threading.Thread(target=keep_running, args=(runner, stop)),
            threading.Thread(target=keep_changing, args=(editor, stop)),
        ]
        for thread in threads:
            thread.start()
        time.sleep(MINUTES * 60)
        stop.set()
        for thread in threads:
            thread.join(900)
            assert not thread.is_alive(), "a command is stuck"
    print(json.dumps({**runner.done, **editor.done}, indent=1), file=sys.stderr)
    assert runner.faults + editor.faults == []
    last: Any = runner.mona("run")
    assert last.returncode == 0, last.stderr
    assert set(project.status().values()) == {"fresh"}
    assert assert_codes_are_those_of_their_texts(project) > 100
    assert findings(project) == []
