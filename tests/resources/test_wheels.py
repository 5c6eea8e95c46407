"""Wheels as pip brings them, from a folder in place of an index."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from pathlib import Path

import pytest

from mona.errors import PassingError, WorkError
from mona.spec import Wheel
from resources.sources import Sources


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for all there is; what a user's settings add is left out."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(folder: Path, text: str) -> Path:
    path = folder / "own_rows-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("own_rows/rows.jsonl", text)
        about = "own_rows-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: own-rows\nVersion: 1.0")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def test_a_wheel_with_its_hash_is_brought(index: Path, tmp_path: Path) -> None:
    made = make_wheel(index, '{"a": 1}\n')
    wheel = Wheel(name="own-rows==1.0", sha256=digest(made), members="**/*.jsonl")
    found = Sources(home=str(tmp_path / "home")).wheel(wheel)
    assert digest(found) == wheel.sha256


def test_another_wheel_of_the_name_is_refused_at_once(index: Path, tmp_path: Path) -> None:
    make_wheel(index, '{"a": 2}\n')
    wheel = Wheel(name="own-rows==1.0", sha256="ab" * 32, members="**/*.jsonl")
    with pytest.raises(WorkError, match=f"what pip finds has not sha256 {'ab' * 32}") as raised:
        Sources(home=str(tmp_path / "home")).wheel(wheel)
    assert not isinstance(raised.value, PassingError)
    assert not list((tmp_path / "home").rglob("*.whl"))


def test_a_source_distribution_is_never_run(index: Path, tmp_path: Path) -> None:
    """Not even one whose hash is the one that is asked for."""
    package = tmp_path / "own_rows-1.0"
    package.mkdir()
    ran = tmp_path / "ran"
    (package / "setup.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\n"
        "setup(name='own-rows', version='1.0')\n"
    )
    (package / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: own-rows\nVersion: 1.0\n")
    made = index / "own_rows-1.0.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        archive.add(package, package.name)
    wheel = Wheel(name="own-rows==1.0", sha256=digest(made), members="**/*.jsonl")
    with pytest.raises(PassingError, match="own-rows==1.0: .*[Nn]o matching distribution"):
        Sources(home=str(tmp_path / "home")).wheel(wheel)
    assert not ran.exists()
