"""Every fault of a configuration is one line: file, key, reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mona.errors import Faults, RequestError
from orchestration.config import load_config

GOOD = """\
store: {root: store}
datasets:
  pool_a:
    sources:
      - {name: rows, path: rows.jsonl}
models:
  small:
    language_model: {path: model}
    sae: {train: {datasets: [pool_a]}}
targets:
  task:
    reader: pool
    examples: {path: ~/examples.jsonl}
recipes:
  best: {budget: {share: 0.05}}
"""


def load(tmp_path: Path, text: str) -> object:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def test_paths_are_relative_to_the_file_and_home_is_expanded(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.datasets["pool_a"].sources[0].path == str(tmp_path / "rows.jsonl")
    assert config.targets["task"].examples.path == str(Path.home() / "examples.jsonl")
    assert config.store_root == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("reader: pool", "reader: poll", "targets.task.reader"),
        ("share: 0.05", "shares: 0.05", "recipes.best.budget.shares"),
        ("share: 0.05", "share: 1.5", "recipes.best.budget.share"),
        ("share: 0.05", "share: 0.05, count: 3", "exactly one of share, count, tokens"),
        ("  pool_a:\n", "  Pool-A:\n", "datasets"),
        ("  pool_a:\n", "  ../up:\n", "datasets"),
        ("  task:\n", "  models:\n", "'models' is reserved"),
        ("datasets: [pool_a]", "datasets: [pool_b]", "no dataset is called 'pool_b'"),
        ("datasets: [pool_a]", "datasets: [pool_b]", "did you mean 'pool_a'?"),
        ("reader: pool", "reader: poll", "'poll' is no target reader; did you mean 'pool'? There"),
        ("reader: pool", "reader: base", "reader: 'base' is no target reader; there are bbh, gpqa"),
        (
            "rows.jsonl}",
            "rows.jsonl, format: alpacca}",
            "'alpacca' is no pool format; did you mean",
        ),
        (
            "rows.jsonl}",
            "rows.jsonl, format: csv}",
            "format: 'csv' is no pool format; there are auto",
        ),
        (
            "rows.jsonl}",
            "rows.jsonl, format: 7}",
            "sources.0.format: Input should be a valid string",
        ),
        ("share: 0.05", "shar: 0.05", "did you mean 'share'?"),
        ("  - {name: rows,", "  - {nmae: rows, name: rows,", "did you mean 'name'?"),
        ("language_model: {path", "language_model: {pth: 1, path", "did you mean 'path'?"),
        ("[pool_a]}}", "[pool_a], k: 9, latents: 8}}", "k = 9 is above latents = 8"),
        ("[pool_a]}}", "[pool_a], tokens: 9}}", "tokens = 9 is less than batch_tokens"),
        ("    sae:", "    k: 9000\n    sae:", "k = 9000 is above sae.train.latents = 4608"),
        ("store: {", "path: x\nstore: {", "path: no such key"),
        ("root: store", "root: s3://bucket/x", "store.home: is needed"),
        ("recipes:\n", "automation: {sweep: often}\nrecipes:\n", "is no cron expression"),
        ("{name: rows, path: rows.jsonl}", "{name: rows}", "exactly one of path, hub, wheel"),
        ("root: store", "root: '${NOT_SET_ANYWHERE}'", "NOT_SET_ANYWHERE is not set"),
        ("recipes:\n", "recipes:\n  best: {budget: {count: 1}}\n", "'best' is given twice"),
        ("store: {root: store}", "store: {root: store", "line"),
    ],
)
def test_a_fault_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(RequestError) as raised:
        load(tmp_path, GOOD.replace(old, new))
    message = str(raised.value)
    assert message.startswith(str(tmp_path / "c.yaml"))
    assert says in message
    assert "\n" not in message


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("share: 0.05", "shar: 0.05").replace("reader: pool", "reader: poll")
    with pytest.raises(Faults) as raised:
        load(tmp_path, text.replace("root: store", "root: ''"))
    file = tmp_path / "c.yaml"
    assert [fault.partition(": ")[2].partition(":")[0] for fault in raised.value.faults] == [
        "store.root",
        "targets.task.reader",
        "recipes.best.budget.shar",
        "recipes.best.budget",
    ][: len(raised.value.faults)]
    assert len(raised.value.faults) >= 3
    assert all(fault.startswith(f"{file}: ") for fault in raised.value.faults)
    text = GOOD.replace("[pool_a]", "[pool_b]").replace("root: store", "root: s3://bucket/x")
    with pytest.raises(Faults) as raised:
        load(tmp_path, text)
    assert len(raised.value.faults) == 2


def test_variables_are_values_whatever_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER", "a: {b}\n# c")
    monkeypatch.setenv("SHARE", "0.25")
    text = GOOD.replace("path: rows.jsonl", "path: ${FOLDER}/rows.jsonl")
    text = text.replace("share: 0.05", "share: ${SHARE}") + "# ${NOT_SET_ANYWHERE}\n"
    config = load(tmp_path, text)
    assert config.datasets["pool_a"].sources[0].path == str(tmp_path / "a: {b}\n# c/rows.jsonl")
    assert config.recipes["best"].budget.share == 0.25


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"store: \xe9")
    with pytest.raises(RequestError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_jaccard_of_signed_views_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("{budget: {share: 0.05}}", "{representation: mean, budget: {count: 1}}")
    with pytest.raises(RequestError, match="has signs"):
        load(tmp_path, text)


@pytest.mark.parametrize("name", ["demo", "real", "paper"])
def test_the_examples_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONA_DATA", "/data")
    root = Path(__file__).resolve().parents[2]
    config = load_config(root / "examples" / f"{name}.yaml")
    assert config.recipes["mona"].similarity == "jaccard"
    assert yaml.safe_load((root / "workspace.yaml").read_text())["load_from"]
