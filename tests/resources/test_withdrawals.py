"""The ledger, the purge of table versions, and amended records, on real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lance.file import LanceFileReader

from mona.errors import WorkError
from resources.encoding_tables import KEY_FIELD
from resources.purge import remove_rest, rewrite, rows_ever, rows_with, versions
from resources.records import Record, Records, sealed
from resources.store import Store
from resources.withdrawals import Withdrawal, Withdrawals

SCHEMA = pa.schema([KEY_FIELD, pa.field("n", pa.int32())], metadata={b"fingerprint": b"one"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=str(tmp_path), home=str(tmp_path))


def add(store: Store, ids: str) -> int:
    store.append("codes.a", pa.table([list(ids), list(range(len(ids)))], schema=SCHEMA))
    return store.version("codes.a")


def on_disk(store: Store) -> list[str]:
    """Every id in every data file of the table, referred to or not."""
    found: list[str] = []
    for path in (Path(store.root) / "tables" / "codes.a.lance" / "data").glob("*.lance"):
        rows: Any = LanceFileReader(str(path)).read_all().to_table()
        found += rows.column("sample_id").to_pylist()
    return found


def test_a_row_goes_from_every_kept_version_and_from_the_disk(store: Store) -> None:
    store.ensure("codes.a", SCHEMA)
    first = add(store, "xy")
    store.tag("codes.a", "one", first)
    second = add(store, "z")
    store.tag("codes.a", "two", second)
    add(store, "w")  # in no tag: need not be kept
    store.delete("codes.a", ["w"])
    store.delete("codes.a", ["x"])
    add(store, "v")
    assert set(on_disk(store)) == set("xyzvw")
    assert [r["n"] for r in rows_ever(store, "codes.a", "sample_id", ["x"], ["n"])] == [0]

    moved = rewrite(store, "codes.a", rows_with("sample_id", ["x"]), [first, second])
    assert {first, second} < set(moved)  # and the current one, which only hides the row
    remove_rest(store, "codes.a", moved)

    assert sorted(set(on_disk(store))) == list("vyz")
    assert store.sample_ids("codes.a").to_pylist() == list("yzv")
    tags = store.tags("codes.a")
    assert tags == {"one": moved[first], "two": moved[second]}
    assert store.sample_ids("codes.a", version=tags["one"]).to_pylist() == ["y"]
    assert store.sample_ids("codes.a", version=tags["two"]).to_pylist() == ["y", "z"]
    store.ensure("codes.a", SCHEMA)  # the schema with its fingerprint is as it was
    gone = rows_with("sample_id", ["x"])
    assert rewrite(store, "codes.a", gone, versions(store, "codes.a")) == {}


def test_a_clean_current_version_stays_the_current_one(store: Store) -> None:
    store.ensure("codes.a", SCHEMA)
    first = add(store, "xy")
    store.tag("codes.a", "one", first)
    clean = store.replace("codes.a", pa.table([["q"], [1]], schema=SCHEMA).to_batches(), SCHEMA)
    store.tag("codes.a", "two", clean)
    moved = rewrite(store, "codes.a", rows_with("sample_id", ["x"]), [first, clean])
    assert set(moved) == {first}
    remove_rest(store, "codes.a", moved)
    assert store.sample_ids("codes.a").to_pylist() == ["q"]
    assert store.tags("codes.a") == {"one": moved[first], "two": clean}
    assert sorted(on_disk(store)) == ["q", "y"]


def test_an_amended_record_keeps_its_digest_and_names_the_new_version(store: Store) -> None:
    records = Records(home=store.home)
    store.ensure("codes.a", SCHEMA)
    add(store, "xy")
    made = Record("sae_codes[a|m]", "v", tables={"codes.a": sealed(store, "codes.a")})
    digest = records.publish(made)
    before = records.body(digest)
    add(store, "z")
    now = sealed(store, "codes.a")
    records.amend(digest, "codes.a", now, gone=["x"], removed={"x": "00"}, by="first")
    records.amend(digest, "pool.a", now, gone=["y"], removed={"y": "11"}, by="second")
    assert records.body(digest) == before
    assert records.get(digest).tables == {"codes.a": now, "pool.a": now}
    assert records.as_published(digest).tables["codes.a"].version == now.version - 1
    amendment = records.amendment(digest)
    assert amendment is not None
    assert (amendment.removed, amendment.withdrawals) == (
        {"x": "00", "y": "11"},
        ["first", "second"],
    )
    first, second = amendment.steps
    assert (first.previous, second.previous) == (digest, first.digest)
    assert (first.gone, second.table) == (["x"], "pool.a")
    (Path(store.home) / "records" / "amended" / f"{digest}.json").write_text("{}")
    with pytest.raises(WorkError, match="no amendment"):
        records.get(digest)


def test_no_step_begins_while_a_withdrawal_is_not_complete(store: Store) -> None:
    ledger, asked = Withdrawals(store.home), Withdrawal("asked", ids=("a",))
    ledger.open(asked)
    refused = f"withdrawal {asked.name} is at work or was cut short"
    with pytest.raises(WorkError, match=refused), store.lock("codes.a"):
        pass
    with store.lock("codes.a", withdrawing=True):
        ledger.close(asked.name, {})
    with store.lock("codes.a"):
        pass


def test_the_ledger_knows_what_is_pending_and_what_may_not_come_back(tmp_path: Path) -> None:
    ledger = Withdrawals(tmp_path)
    assert (ledger.all(), ledger.pending()) == ([], [])
    by_id = Withdrawal("asked", ids=("a",), datasets=("d",), samples={"d": ["a"]})
    by_source = Withdrawal("licence", source="s", datasets=("d", "e"), samples={"e": ["b"]})
    ledger.open(by_id)
    ledger.open(by_source)
    assert {found.name for found in ledger.pending()} == {by_id.name, by_source.name}
    ledger.close(by_id.name, {"tables": {}})
    assert [found.name for found in ledger.pending()] == [by_source.name]
    assert ledger.get(by_id.name) == replace(by_id, number=1)  # the first of this home
    assert Withdrawal("another reason", ids=("a",)).name == by_id.name
    forbidden = ledger.forbidden()
    assert forbidden.ids == {"a"}  # a source's rows may come back by another source
    assert [forbidden.covers(label) for label in ("s", "s/x", "sx")] == [True, True, False]
    assert (ledger.of_dataset("d"), ledger.of_dataset("e")) == ([by_id.name], [])
    ledger.close(by_source.name, {"tables": {}})
    assert ledger.of_dataset("e") == [by_source.name]
    assert ledger.gone_from("e") == {"b"}
    assert [found.reason for found in ledger.of_sample("b")] == ["licence"]


def test_a_record_and_a_withdrawal_are_read_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(home=store.home)
    digest = records.publish(Record("raw_pool[a]", "v"))
    ledger = records.ledger
    ledger.open(Withdrawal("asked", ids=("a",)))
    read: list[str] = []
    read_text, read_bytes = Path.read_text, Path.read_bytes

    def noted(path: Path, reader: Any, **given: Any) -> Any:
        read.append(path.name)
        return reader(path, **given)

    monkeypatch.setattr(Path, "read_text", lambda p, **given: noted(p, read_text, **given))
    monkeypatch.setattr(Path, "read_bytes", lambda p: noted(p, read_bytes))
    for _ in range(3):
        assert records.get(digest).asset == records.as_published(digest).asset == "raw_pool[a]"
        assert records.ledger.forbidden().ids == {"a"}
        assert [found.reason for found in records.ledger.of_sample("a")] == ["asked"]
    assert len(read) == len(set(read)) == 2
    # What comes later is seen, by who has read before as well.
    Withdrawals(store.home).open(Withdrawal("later", ids=("b",)))
    assert ledger.forbidden().ids == {"a", "b"}
    # Another command reads for itself what was changed under it.
    (Path(store.home) / "records" / f"{digest}.json").write_text("{}")
    with pytest.raises(WorkError, match="is not what it was"):
        Records(home=store.home).get(digest)
