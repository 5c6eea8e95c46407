"""Every fault of a configuration is one line: file, key, reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mona.errors import RequestError
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
