"""Which refreshes of a pool lose too much."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assets.raw_pool import _KEYED_SCHEMA, _refuse_loss, pool_table
from mona.errors import WorkError
from mona.pool import NamedRows, PoolResult, PoolSource, Withdrawn, build_pool
from mona.sample import Message, sample_id
from mona.spec import Source
from resources.records import Record, Records, sealed
from resources.store import Store


def pool(folder: Path, numbers: range, name: str = "s") -> PoolResult:
    rows = [{"prompt": f"Say {n}.", "completion": str(n)} for n in numbers]
    source = PoolSource(Source(name=name, path="unused"), [NamedRows("h", rows)])
    return build_pool([source], folder / f"{numbers}{name}", max_bad_rows=0)


def identity(number: int) -> str:
    return sample_id([Message("user", f"Say {number}."), Message("assistant", str(number))])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(root=str(tmp_path / "root"), home=str(tmp_path / "home"))
    batches = pq.ParquetFile(pool(tmp_path, range(100)).parquet).iter_batches()
    made.replace(pool_table("d"), batches, _KEYED_SCHEMA)
    return made


@pytest.fixture
def records(store: Store) -> Records:
    """Of the pool as it is in the store."""
    made = Records(home=store.home)
    name = pool_table("d")
    made.publish(Record("raw_pool[d]", "version", tables={name: sealed(store, name)}))
    return made


@pytest.mark.parametrize(
    ("numbers", "max_loss", "lost"),
    [
        (range(100), 0.0, 0),
        (range(10, 100), 0.1, 0),
        (range(11, 100), 0.1, 11),
        # New samples don't make up for lost ones.
        (range(11, 300), 0.1, 11),
        (range(1, 300), 0.0, 1),
        (range(200, 201), 0.99, 100),
        (range(200, 201), 1.0, 0),
    ],
)
def test_a_refresh_may_lose_a_share_of_the_samples(
    tmp_path: Path, store: Store, records: Records, numbers: range, max_loss: float, lost: int
) -> None:
    result = pool(tmp_path, numbers)
    if not lost:
        _refuse_loss(store, records, "d", result, max_loss, Withdrawn())
        return
    with pytest.raises(WorkError, match=rf"^datasets\.d: .* lose {lost} of 100 samples") as failure:
        _refuse_loss(store, records, "d", result, max_loss, Withdrawn())
    assert "'max_loss: 1'" in str(failure.value)


def test_what_is_withdrawn_is_not_lost(tmp_path: Path, store: Store, records: Records) -> None:
    result = pool(tmp_path, range(50, 100))
    gone = frozenset(identity(n) for n in range(50))
    _refuse_loss(store, records, "d", result, 0.0, Withdrawn(ids=gone))
    with pytest.raises(WorkError, match="lose 1 of 51 samples"):
        _refuse_loss(store, records, "d", result, 0.0, Withdrawn(ids=gone - {identity(7)}))
    other = pool(tmp_path, range(300, 301), "t")
    _refuse_loss(store, records, "d", other, 0.0, Withdrawn(sources=("s",)))
