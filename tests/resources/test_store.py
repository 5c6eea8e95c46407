"""Real Lance tables on disk."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pytest

from mona.errors import RequestError, WorkError
from resources.encoding_tables import KEY_FIELD
from resources.store import Store

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
