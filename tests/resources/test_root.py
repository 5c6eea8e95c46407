"""A store's root belongs to one home."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from mona.errors import RequestError, WorkError
from resources.root import OWNER, claim
from resources.store import Store


def test_a_root_of_another_home_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = Store(root=str(root), home=str(tmp_path / "first"))
    assert first.table_names() == []
    second = Store(root=str(root), home=str(tmp_path / "second"))
    with pytest.raises(RequestError, match=f"belongs to another home, {tmp_path}/first on "):
        second.table_names()
    assert Store(root=str(root), home=str(tmp_path / "first")).table_names() == []
    # Where the first home is gone for good, the message says the way on.
    (root / OWNER).unlink()
    assert second.table_names() == []


def test_a_moved_or_copied_project_keeps_its_root(tmp_path: Path) -> None:
    project = tmp_path / "project"
    claim(str(project / "root"), project / "home")
    shutil.copytree(project, tmp_path / "copy")
    claim(str(tmp_path / "copy" / "root"), tmp_path / "copy" / "home")
    project.rename(tmp_path / "moved")
    claim(str(tmp_path / "moved" / "root"), tmp_path / "moved" / "home")


def test_a_store_of_before_the_mark_is_its_homes(tmp_path: Path) -> None:
    (tmp_path / "store" / "records").mkdir(parents=True)
    with pytest.raises(RequestError, match="belongs to another home"):
        claim(str(tmp_path / "store"), tmp_path / "other")
    claim(str(tmp_path / "store"), tmp_path / "store")


def test_of_many_first_homes_one_has_the_root(tmp_path: Path) -> None:
    root, refused = tmp_path / "root", []

    def ask(home: str) -> None:
        try:
            claim(str(root), tmp_path / home)
        except RequestError:
            refused.append(home)

    threads = [threading.Thread(target=ask, args=(f"home{i % 4}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owner = json.loads((root / OWNER).read_text())
    assert sorted(refused) == sorted(
        home for i in range(12) if (home := f"home{i % 4}") != Path(owner["home"]).name
    )
    assert [path.name for path in root.iterdir()] == [OWNER]


def test_a_damaged_mark_is_one_line(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("{")
    with pytest.raises(RequestError, match=r"home\.json: is no mark of a store"):
        claim(str(tmp_path), tmp_path)
    (tmp_path / OWNER).write_text("[]")
    with pytest.raises(RequestError, match="belongs to another home, unknown"):
        claim(str(tmp_path), tmp_path)


def test_an_object_store_without_a_region_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(WorkError, match="can't be reached") as refused:
        Store(root="s3://no-such-bucket-of-ours/x", home=str(tmp_path)).table_names()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250
    assert "set AWS_REGION" in str(refused.value)


@pytest.mark.parametrize("name", ["a#b", "a b", "x$y", "é"])
def test_tables_lie_under_a_root_of_any_name(tmp_path: Path, name: str) -> None:
    import pyarrow as pa

    root = tmp_path / name
    store = Store(root=str(root), home=str(root))
    table = pa.table({"sample_id": ["a", "b"]})
    version = store.replace("pool.a", table.to_batches(), table.schema)
    assert store.sample_ids("pool.a", version=version).to_pylist() == ["a", "b"]
    found = store.at("pool.a", version).take([1], ["sample_id"])
    assert found["sample_id"].to_pylist() == ["b"]
    for path in store.files("pool.a", version):
        with store.open_file("pool.a", path) as stream:
            assert stream.read()
    assert [path.name for path in tmp_path.iterdir()] == [name]
