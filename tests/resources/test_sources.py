"""Which files a source means, what they are called, and when one has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mona.containers import read_rows
from mona.errors import RequestError
from mona.files import DataFile
from mona.spec import DatasetSpec, Source, TargetFiles
from resources.sources import Sources, local_files


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for language in ("de", "fr"):
        write(folder / language / "train.jsonl", f'{{"prompt": "{language}", "completion": "x"}}\n')
    write(folder / "README.md", "About this.")
    write(folder / ".git" / "packed.json", "[]")
    write(folder / ".cache.jsonl", "{}")
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(home=str(tmp_path / "home"))


@pytest.mark.parametrize("path", ["", "*/*.jsonl", "**/train.jsonl", "[df]?/*"])
def test_files_are_named_by_their_path_within_the_source(
    data: Path, sources: Sources, path: str
) -> None:
    source = Source(name="s", path=str(data / path))
    files = sources.files(source, "s")
    assert [file.name for file in files] == ["de/train.jsonl", "fr/train.jsonl"]
    assert [row.file for file in files for row in read_rows(file)] == [f.name for f in files]
    assert [name for name, _ in sources.origin_version(source, "s")] == [f.name for f in files]


def test_a_single_file_is_named_by_its_last_part(data: Path, sources: Sources) -> None:
    (file,) = sources.files(Source(name="s", path=str(data / "de/train.jsonl")), "s")
    assert file.name == "train.jsonl"


def test_files_of_no_known_suffix_are_passed_over_and_named(data: Path, sources: Sources) -> None:
    for path in (data, data / "**"):
        source = Source(name="s", path=str(path))
        assert [file.name for file in sources.files(source, "s")] == [
            "de/train.jsonl",
            "fr/train.jsonl",
        ]
        assert sources.passed_over(source, "s") == ["README.md"]
    named = Source(name="s", path=str(data / "README.md"))
    assert sources.passed_over(named, "s") == []
    with pytest.raises(RequestError, match=r"README\.md: unknown suffix"):
        read_rows(sources.files(named, "s")[0])
    only = Source(name="s", path=str(data / "*.md"))
    with pytest.raises(RequestError, match="s: no file of a known suffix"):
        sources.files(only, "s")
    # What a target's files mean is its reader's affair.
    assert len(sources.files(TargetFiles(path=str(data)), "t")) == 3


def test_a_card_beside_the_rows_is_no_new_version(data: Path, sources: Sources) -> None:
    spec = DatasetSpec(sources=[Source(name="s", path=str(data))])
    before = sources.dataset_version("d", spec, {})
    write(data / "README.md", "More about this.")
    assert sources.dataset_version("d", spec, {}) == before
    loose = spec.model_copy(update={"max_loss": 1.0})
    assert sources.dataset_version("d", loose, {}) == before
    write(data / "fr" / "train.jsonl", '{"prompt": "f", "completion": "y"}\n')
    assert sources.dataset_version("d", spec, {}) != before


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_change_that_keeps_size_and_time_is_noticed(
    data: Path, sources: Sources, how: str
) -> None:
    path = data / "de" / "train.jsonl"
    file = DataFile(path)
    before, status = sources.digest(file), path.stat()
    text = path.read_text().replace("x", "z")
    if how == "in place":
        path.write_text(text)
    else:
        os.replace(write(data / "new", text), path)  # noqa: PTH105
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert path.stat().st_size == status.st_size
    assert sources.digest(file) == file.digest() != before


def test_rehash_reads_what_seems_unchanged(data: Path, sources: Sources) -> None:
    file = DataFile(data / "de" / "train.jsonl")
    sources.digest(file)
    (remembered,) = (Path(sources.home) / "digests").iterdir()
    remembered.write_text("0" * 64)
    assert sources.digest(file) == "0" * 64
    again = Sources(home=sources.home, rehash=True)
    assert again.digest(file) == file.digest()
    # What was read anew is remembered for all.
    assert sources.digest(file) == file.digest()


def test_a_file_name_that_is_no_utf_8_has_a_digest_and_a_name(
    tmp_path: Path, sources: Sources
) -> None:
    path = tmp_path / "odd" / os.fsdecode(b"caf\xe9.jsonl")
    try:
        write(path, '{"prompt": "a", "completion": "b"}\n')
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (file,) = local_files(str(tmp_path / "odd"), "s")
    assert file.name == "caf\\xe9.jsonl"
    assert sources.digest(file) == file.digest()
    spec = DatasetSpec(sources=[Source(name="s", path=str(tmp_path / "odd"))])
    assert sources.dataset_version("d", spec, {})


def test_a_file_that_went_away_is_one_line(data: Path, sources: Sources) -> None:
    with pytest.raises(RequestError, match=r"^gone\.jsonl: No such file or directory$"):
        sources.digest(DataFile(data / "gone.jsonl"))
    with pytest.raises(RequestError, match="s: no file at"):
        local_files(str(data / "gone" / "*.jsonl"), "s")
