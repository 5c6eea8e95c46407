"""A snapshot reads what its records sealed, and says so where that is gone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from mona.errors import WorkError
from resources.encoding_tables import KEY_FIELD
from resources.records import Record, Records, sealed
from resources.snapshot import Snapshot
from resources.store import Store

SCHEMA = pa.schema([KEY_FIELD])
NAME, ASSET = "codes.a.m.c", "sae_codes[a|m]"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=str(tmp_path), home=str(tmp_path))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(home=str(tmp_path))


def replace(store: Store, *batches: str) -> None:
    rows = [pa.record_batch([pa.array(list(ids))], schema=SCHEMA) for ids in batches]
    store.replace(NAME, rows, SCHEMA)


def publish(store: Store, records: Records, version: str = "v") -> str:
    return records.publish(Record(ASSET, version, tables={NAME: sealed(store, NAME)}))


def test_what_is_written_or_recorded_later_is_not_seen(store: Store, records: Records) -> None:
    replace(store, "ab")
    first = publish(store, records)
    read = Snapshot.of(store, records, [ASSET])
    held = read.table(ASSET, NAME)
    replace(store, "xyz")
    publish(store, records, "w")
    assert read.inputs == {ASSET: first}
    for table in (held, read.table(ASSET, NAME)):
        assert table.sample_ids.to_pylist() == ["a", "b"]
        assert table.rows(["sample_id"], ["b"]).column(0).to_pylist() == ["b"]
        assert table.count() == 2
    assert Snapshot.of(store, records, [ASSET]).table(ASSET, NAME).count() == 3


def test_an_asset_without_a_record_is_named(store: Store, records: Records) -> None:
    with pytest.raises(WorkError, match=r"sae_codes\[a\|m\] has no provenance record"):
        Snapshot.of(store, records, [ASSET])


def test_a_table_that_the_record_does_not_name_is_refused(store: Store, records: Records) -> None:
    replace(store, "ab")
    publish(store, records)
    with pytest.raises(WorkError, match="names no table 'pool.a'"):
        Snapshot.of(store, records, [ASSET]).table(ASSET, "pool.a")


def test_the_same_version_number_of_another_making_is_not_read(
    store: Store, records: Records
) -> None:
    replace(store, "ab")
    publish(store, records)
    read = Snapshot.of(store, records, [ASSET])
    store.drop(NAME)
    replace(store, "cd")
    assert store.version(NAME) == 1
    with pytest.raises(WorkError, match=rf"'{NAME}' version 1 is not the one that .* recorded"):
        read.table(ASSET, NAME)


def test_a_version_that_is_gone_is_one_line(store: Store, records: Records) -> None:
    replace(store, "ab")
    replace(store, "abc")
    publish(store, records)
    read = Snapshot.of(store, records, [ASSET])
    store.drop(NAME)
    replace(store, "abc")
    with pytest.raises(WorkError, match=rf"table '{NAME}': can't be read .*restore") as told:
        read.table(ASSET, NAME)
    assert "\n" not in str(told.value)
