"""A whole small project on disk: two pools and a target of our own text, a tiny real model."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import Engine

from orchestration.config import Config, load_config
from orchestration.definitions import build_definitions, build_resources
from orchestration.home import open_instance
from orchestration.planner import Choice, Standing, states, steps
from orchestration.run import Done, bring_up_to_date, observe
from orchestration.verify import Finding, read_audit, verify_project

FRUITS = ("apple", "pear", "plum", "fig", "quince", "cherry", "medlar", "grape")


def sums(start: int, count: int) -> list[dict[str, str]]:
    """Alpaca rows about adding fruit."""
    return [
        {
            "instruction": f"A basket holds {i} {FRUITS[i % 8]}s and gets {i % 7 + 2} more.",
            "input": "How many are in it now?",
            "output": f"{i} + {i % 7 + 2} = {i + i % 7 + 2}, so the basket holds {i + i % 7 + 2}.",
        }
        for i in range(start, start + count)
    ]


def verses(start: int, count: int) -> list[dict[str, str]]:
    """Alpaca rows that ask for a line of verse."""
    return [
        {
            "instruction": f"Write a line of verse about a {FRUITS[i % 8]} tree in month {i}.",
            "input": "",
            "output": f"O {FRUITS[i % 8]} tree of month {i}, how softly falls thy shade!",
        }
        for i in range(start, start + count)
    ]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@event.listens_for(Engine, "connect")
def _trust_the_page_cache(connection: Any, _record: Any) -> None:
    """No test pulls the plug: what Dagster commits need not reach the disk, which takes longer
    than all else on a busy one. What a killed process wrote is there all the same."""
    connection.execute("PRAGMA synchronous=OFF")


@dataclass
class Project:
    """A configuration file with its data, and the commands on it, in this process."""

    root: Path
    settings: dict[str, Any] = field(default_factory=dict)
    file: str = "mona.yaml"
    made_once: Path | None = None

    def copied_to(self, folder: Path) -> Project:
        """The same, files and store, in another folder."""
        shutil.copytree(self.root, folder, dirs_exist_ok=True)
        return Project(folder, copy.deepcopy(self.settings), self.file, self.made_once)

    @property
    def config_path(self) -> Path:
        return self.root / self.file

    def write(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    @property
    def config(self) -> Config:
        self.write()
        return load_config(self.config_path)

    def rows(self, name: str) -> list[dict[str, str]]:
        lines = (self.root / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write_rows(self, name: str, rows: list[dict[str, str]]) -> None:
        write_rows(self.root / f"{name}.jsonl", rows)

    @contextmanager
    def opened(self) -> Iterator[tuple[Config, dg.Definitions, dg.DagsterInstance]]:
        config = self.config
        with open_instance(config) as instance:
            observe(config, instance, build_resources(config))
            yield config, build_definitions(config), instance

    def run(self, **choice: Any) -> Done:
        retrain = choice.pop("retrain_sae", False)
        with self.opened() as (config, definitions, instance):
            return bring_up_to_date(
                config, definitions, instance, Choice(**choice), retrain_sae=retrain
            )

    def first_run(self, **choice: Any) -> Done:
        """As `run` where nothing was made yet, for a test of what comes after it: of the same
        files and settings it is made once, and every other test gets a copy."""
        assert not (self.root / "store").exists()
        self.write()
        if self.made_once is None:
            return self.run(**choice)
        kept = self.made_once / f"project-{self._digest(choice)}"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                done = self.run(**choice)
                half = kept.with_suffix(".half")
                shutil.copytree(self.root, half / "project")
                (half / "done.json").write_text(json.dumps(dataclasses.asdict(done)))
                half.rename(kept)
                return done
        shutil.copytree(kept / "project", self.root, dirs_exist_ok=True)
        return Done(**json.loads((kept / "done.json").read_text()))

    def _digest(self, choice: dict[str, Any]) -> str:
        """Names the choice and every file under the project."""
        digest = hashlib.sha256(repr(sorted(choice.items())).encode())
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            digest.update(f"\n{path.relative_to(self.root)} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def status(self) -> dict[str, str]:
        with self.opened() as (config, definitions, instance):
            standing = Standing(instance, definitions.resolve_asset_graph(), config)
            from orchestration.planner import label

            return {
                label(state.key, state.partition): state.status
                for state in states(standing, steps(config, Choice().checked(config)))
            }

    @property
    def store(self) -> Any:
        return build_resources(self.config)["store"]

    def table(self, prefix: str) -> str:
        (name,) = (name for name in self.store.table_names() if name.startswith(prefix))
        return name


def findings(project: Project) -> list[Finding]:
    """What `mona lineage verify` finds."""
    config = project.config
    resources = build_resources(config)
    return verify_project(config, read_audit(resources["records"]), resources["store"])


def small_project(root: Path, model: Path, made_once: Path | None = None) -> Project:
    """The project under a folder, over a model's folder; nothing is made yet."""
    project = Project(root, made_once=made_once)
    project.write_rows("fruit", sums(0, 60) + verses(0, 60))
    project.write_rows("verse", verses(100, 40))
    project.write_rows("examples", sums(500, 6))
    project.write_rows("test", sums(900, 6))
    project.settings = {
        "store": {"root": "store"},
        "engine": {"device": "cpu", "batch_tokens": 512, "commit_tokens": 2048},
        "datasets": {
            name: {"sources": [{"name": name, "path": f"{name}.jsonl", "licence": "CC0-1.0"}]}
            for name in ("fruit", "verse")
        },
        "models": {"tiny": _model(model)},
        "targets": {
            "adding": {
                "reader": "pool",
                "examples": {"path": "examples.jsonl"},
                "test": {"path": "test.jsonl"},
            }
        },
        "recipes": {"mona": {"budget": {"count": 10}}},
    }
    project.write()
    return project


def _model(folder: Path) -> dict[str, Any]:
    return {
        "language_model": {"path": str(folder)},
        "max_length": 256,
        "dtype": "float32",
        "token_cache_gb": 0.1,
        "sae": {
            "train": {
                "datasets": ["fruit"],
                "latents": 128,
                "k": 8,
                "tokens": 8192,
                "batch_tokens": 512,
                "learning_rate": 0.003,
            },
            "max_fvu": 2.0,
            "quality_tokens": 500,
        },
    }


@pytest.fixture
def project(tmp_path: Path, tiny_llama: Path, made_once: Path) -> Project:
    return small_project(tmp_path, tiny_llama, made_once)


class ForwardCount:
    """Samples that passed the model, counted by a hook on the embedding layer."""

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, _module: Any, inputs: Any, _output: Any) -> None:
        self.samples += len(inputs[0])

    def take(self) -> int:
        """The count since the last take."""
        samples, self.samples = self.samples, 0
        return samples


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> ForwardCount:
    """Counts every forward pass of every encoder loaded from now on."""
    from mona.encoder import Encoder
    from resources import models

    models._load_encoder.cache_clear()
    count = ForwardCount()
    load = Encoder.load

    def counted(*args: Any, **options: Any) -> Encoder:
        encoder = load(*args, **options)
        encoder.embedding.register_forward_hook(count)
        return encoder

    monkeypatch.setattr(Encoder, "load", counted)
    yield count
    models._load_encoder.cache_clear()


# A fine-tune of a tiny model that takes a second and learns something.
TINY_FINETUNE: dict[str, Any] = {
    "lora": {"rank": 4},
    "epochs": 2,
    "learning_rate": 0.01,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_length": 256,
    "dtype": "float32",
}


@pytest.fixture
def measured(project: Project) -> Project:
    return measured_project(project)


def measured_project(project: Project) -> Project:
    """The project with two measured targets, a control and the untouched model."""
    project.settings["datasets"].pop("verse")
    rows = [
        {
            "question": f"Anna has {i} figs and eats {i % 3}. How many are left?",
            "answer": f"{i} - {i % 3} = {i - i % 3}.\n#### {i - i % 3}",
        }
        for i in range(40, 60)
    ]
    for name, part in (("shots", rows[:6]), ("held", rows[6:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (project.root / f"{name}.jsonl").write_text(text)
    project.settings["targets"] = {
        "adding": {
            **project.settings["targets"]["adding"],
            "evaluation": {"loss_rows": 4},
        },
        "eating": {
            "reader": "gsm8k",
            "examples": {"path": "shots.jsonl"},
            "test": {"path": "held.jsonl"},
            "evaluation": {"rows": 5, "max_new_tokens": 8, "chat": True},
        },
    }
    project.settings["recipes"] = {
        "mona": {"budget": {"count": 10}, "finetune": TINY_FINETUNE},
        "random": {"selector": "random", "budget": {"count": 10}, "finetune": TINY_FINETUNE},
        "base": {"selector": "none"},
    }
    return project
