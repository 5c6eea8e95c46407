"""Real Lance tables on disk."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mona.errors import RequestError, WorkError
from resources.encoding_tables import KEY_FIELD
from resources.purge import remove_rest
from resources.store import Store

CODED = pa.schema([KEY_FIELD, pa.field("values", pa.list_(pa.float64(), 50))])
SCHEMA = pa.schema([KEY_FIELD, pa.field("n", pa.int32())], metadata={b"fingerprint": b"one"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=str(tmp_path), home=str(tmp_path))


def rows(*pairs: tuple[str, int]) -> pa.Table:
    return pa.table([[p[0] for p in pairs], [p[1] for p in pairs]], schema=SCHEMA)


def test_append_delete_and_rows_in_the_order_asked_for(store: Store) -> None:
    store.ensure("codes.a", SCHEMA)
    store.append("codes.a", rows(("x", 1), ("y", 2), ("z", 3)))
    store.delete("codes.a", ["y"])
    assert store.rows("codes.a", ["n"], ["z", "x"]).column("n").to_pylist() == [3, 1]
    with pytest.raises(WorkError, match="no row of sample y"):
        store.rows("codes.a", ["n"], ["z", "y"])


def test_a_table_of_another_fingerprint_is_refused(store: Store) -> None:
    store.ensure("codes.a", SCHEMA)
    with pytest.raises(RequestError, match="another fingerprint"):
        store.ensure("codes.a", SCHEMA.with_metadata({b"fingerprint": b"two"}))


def test_a_failing_replacement_leaves_what_was_there(store: Store) -> None:
    store.replace("pool.a", rows(("x", 1)).to_batches(), SCHEMA)

    def broken():
        yield rows(("y", 2)).to_batches()[0]
        raise WorkError("the source broke off")

    with pytest.raises(Exception, match="broke off"):
        store.replace("pool.a", broken(), SCHEMA)
    assert store.sample_ids("pool.a").to_pylist() == ["x"]


def test_a_tag_pins_a_version_that_stays_readable(store: Store) -> None:
    first = store.replace("pool.a", rows(("x", 1)).to_batches(), SCHEMA)
    store.tag("pool.a", "kept", first)
    store.replace("pool.a", rows(("y", 2)).to_batches(), SCHEMA)
    assert store.tags("pool.a") == {"kept": first}
    assert store.sample_ids("pool.a", version=first).to_pylist() == ["x"]


@pytest.mark.parametrize("name", ["../x", "A", "", "a/b", "a b"])
def test_a_name_that_is_no_table_name(store: Store, name: str) -> None:
    with pytest.raises(RequestError, match="no table name"):
        store.replace(name, [], SCHEMA)


def _hold(root: str, held: object, release: object) -> None:
    with Store(root=root, home=root).lock("sae.m"):
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_lock_names_its_holder_and_goes_with_a_killed_process(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(store.root, held, release))
    process.start()
    assert held.wait(60)
    with pytest.raises(WorkError, match=f"process {process.pid} "), store.lock("sae.m"):
        pass
    process.kill()
    process.join()
    with store.lock("sae.m"):
        pass


def coded(start: int, count: int) -> pa.Table:
    """Rows of codes, 400 bytes each."""
    draw = np.random.default_rng(start)
    codes = pa.FixedSizeListArray.from_arrays(pa.array(draw.random(count * 50)), 50)
    ids = [f"{i:032x}" for i in range(start, start + count)]
    return pa.table([pa.array(ids), codes], schema=CODED)


@pytest.mark.parametrize("total", [2_000, 20_000])
def test_a_refresh_writes_its_own_rows_and_past_versions_share_the_rest(
    store: Store, total: int
) -> None:
    name = "codes.a"
    store.ensure(name, CODED)
    for start in range(0, total, 250):
        store.append(name, coded(start, 250))
    store.compact(name)
    cost = {path: size for path, size in store.sizes(name).items() if path.startswith("data/")}
    refresh = total // 100
    for i in range(4):
        store.tag(name, f"subset{i}", store.version(name))
        before = set(store.sizes(name))
        store.append(name, coded(total + i * refresh, refresh))
        store.compact(name)
        written = {p: s for p, s in store.sizes(name).items() if p not in before}
        data = sum(size for path, size in written.items() if path.startswith("data/"))
        assert data <= 3 * refresh * (sum(cost.values()) / total) + 20_000, i  # a file's own head
    remove_rest(store, name, {})
    sizes = store.sizes(name)
    current = set(store.newest(name).files)
    kept = sum(size for path, size in sizes.items() if path.startswith("data/"))
    newest = sum(size for path, size in sizes.items() if path in current and "data/" in path)
    assert kept <= 1.3 * newest
    assert store.count(name) == total + 4 * refresh
    assert len(store.newest(name).sample_ids) == total + 4 * refresh
