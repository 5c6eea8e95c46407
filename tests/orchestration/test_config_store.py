"""What a store's place, names and variables may be, told as the configuration is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mona.errors import RequestError
from orchestration.config import load_config
from tests.orchestration.bare import bare_config, bare_settings


def with_store(folder: Path, **store: str) -> Any:
    return bare_config(folder, {**bare_settings(), "store": store})


def test_a_root_that_can_be_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    cases = {
        "file": "is no folder",
        "file/below": "is no folder",
        "loop": "store.root",
        "loop/below": "store.root",
        "what?": "'?' and '%' can't be in it",
        "50%25x": "'?' and '%' can't be in it",
        "q%41/below": "'?' and '%' can't be in it",
        "100%": "store.root",
        "~nobody_of_this_name/x": "mona.yaml: store.root: ~nobody_of_this_name/x: Could not",
        "x" * 300: "store.root",
    }
    for root, says in cases.items():
        with pytest.raises(RequestError) as refused:
            with_store(tmp_path, root=root)
        assert says in str(refused.value), root
        assert "\n" not in str(refused.value)
        assert str(refused.value).startswith(str(tmp_path / "mona.yaml")), root
    # A link to what is not there yet is made.
    assert with_store(tmp_path, root="dangling").store_root == str(tmp_path / "nowhere")
    assert with_store(tmp_path, root="x$y").store_root == str(tmp_path / "x$y")
    with pytest.raises(RequestError, match=r"store\.home: .*50%25x: '\?' and '%' can't be in it"):
        with_store(tmp_path, root="root", home="50%25x")


def test_a_home_that_can_be_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"store\.home: .*file is no folder"):
        with_store(tmp_path, root="root", home="file")
    with pytest.raises(RequestError, match=r"store\.home: no home folder is known for"):
        with_store(tmp_path, root="root", home="~no_such/x")


def test_variables_are_expanded_in_values_and_keys_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRUIT", "fruit")
    monkeypatch.setenv("COUNT", "7")
    monkeypatch.setenv("TRICKY", "a: [b, # c")
    monkeypatch.delenv("UNSET", raising=False)
    bare_config(tmp_path)
    path = tmp_path / "mona.yaml"
    text = path.read_text().replace("count: 3", "count: ${COUNT}  # or ${UNSET}")
    text = "# ${UNSET} is a comment\n" + text.replace("fruit.jsonl", "${TRICKY}/$fruit$.jsonl")
    path.write_text(text)
    config = load_config(path)
    assert config.recipes["mona"].budget is not None
    assert config.recipes["mona"].budget.count == 7
    (source,) = config.datasets["fruit"].sources
    assert source.path == str(tmp_path / "a: [b, # c" / "$fruit$.jsonl")
    path.write_text(text.replace("examples.jsonl", "${UNSET}"))
    number = path.read_text().split("\n").index("      path: ${UNSET}") + 1
    with pytest.raises(RequestError, match=f"line {number}: the environment variable UNSET is not"):
        load_config(path)


def test_names_that_make_no_file_name_together_are_refused(tmp_path: Path) -> None:
    settings = bare_settings()
    longest = "a" * 60
    settings["targets"] = {longest: settings["targets"]["adding"]}
    settings["recipes"] = {longest: settings["recipes"]["mona"]}
    assert longest in bare_config(tmp_path, settings).targets
    settings["datasets"] = {longest: settings["datasets"]["fruit"]}
    settings["models"]["tiny"]["sae"]["train"]["datasets"] = [longest]
    with pytest.raises(RequestError, match=f"targets.{longest}, recipes.{longest}, .* 184 letters"):
        bare_config(tmp_path, settings)
