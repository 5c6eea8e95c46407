"""Files read and written whole, and outputs that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mona.errors import RequestError
from mona.files import refuse_existing, write_whole


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

    monkeypatch.setattr("mona.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "third")
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]
    assert path.read_bytes() == b"zweite"


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, "body")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "body")]
