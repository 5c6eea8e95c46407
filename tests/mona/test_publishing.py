"""Files and folders that are whole or not there, and outputs that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mona.errors import RequestError
from mona.publishing import (
    publish_folder,
    published_file,
    published_folder,
    refuse_existing,
    unfinished,
    write_whole,
)


def test_an_output_that_exists_is_refused_unless_forced(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "new.jsonl", force=False)
    for there in (tmp_path / "old.jsonl", tmp_path / "old"):
        there.touch() if there.suffix else there.mkdir()
        with pytest.raises(RequestError, match=rf"{there.name}: exists; give --force"):
            refuse_existing(there, force=False)
        refuse_existing(there, force=True)


def test_a_pipe_or_a_device_is_no_output_even_forced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(RequestError, match=f"{path}: is neither a file nor a folder"):
            refuse_existing(path, force=True)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.json"
    write_whole(path, "första")
    write_whole(path, b"zweite")
    assert path.read_bytes() == b"zweite"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mona.publishing.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "third")
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]
    assert path.read_bytes() == b"zweite"


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, "body")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "body")]


def test_a_file_that_a_kill_left_half_is_written_anew_and_through_no_link(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "rows.jsonl", tmp_path / "elsewhere"
    elsewhere.write_text("another's")
    unfinished(out).symlink_to(elsewhere)
    with published_file(out, unfinished(out)) as partial:
        assert partial.read_bytes() == b""
        partial.write_text("ours")
        assert not out.exists()
    assert (out.read_text(), elsewhere.read_text()) == ("ours", "another's")
    assert not out.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "rows.jsonl"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, replace: bool) -> None:
    out = tmp_path / "a" / "model"
    with pytest.raises(RuntimeError), published_folder(out, replace=replace) as partial:
        (partial / "weights").touch()
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    for content in ("first", "second"):
        with published_folder(out, replace=replace) as partial:
            (partial / content).touch()
            assert not (out / content).exists()
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    # Whose name says what is in it is not made twice; another is replaced when asked.
    assert [path.name for path in out.iterdir()] == ["second" if replace else "first"]


def test_a_folder_that_is_whole_already_is_only_renamed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish_folder(tmp_path / "one", tmp_path / "out")
    publish_folder(tmp_path / "two", tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert (tmp_path / "two" / "file").read_text() == "two"
    with pytest.raises(OSError, match="No such file"):
        publish_folder(tmp_path / "one", tmp_path / "again")
