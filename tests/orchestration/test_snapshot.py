"""A step reads what its record names: tables edited or replaced beside it change nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from assets import raw_pool
from assets import sae as sae_asset
from mona.errors import WorkError
from orchestration.definitions import build_resources
from tests.orchestration.conftest import Project


@pytest.fixture
def one(project: Project) -> Project:
    """One dataset."""
    project.settings["datasets"].pop("verse")
    return project


def chosen(project: Project) -> list[str]:
    return project.store.sample_ids("selection.adding.mona.fruit.tiny").to_pylist()


def overwrite(project: Project, table: str, rows: pa.Table) -> None:
    """What a person does to a table through LanceDB."""
    import lancedb

    lancedb.connect(f"{project.root}/store/tables").create_table(table, rows, mode="overwrite")


def test_tables_changed_outside_are_not_read(one: Project) -> None:
    one.first_run()
    before = chosen(one)
    prototype, codes = one.table("prototype.adding."), one.table("codes.fruit.")
    swapped = one.store.read(prototype).to_pylist()
    for row in swapped:
        row["values"] = row["values"][::-1]
    overwrite(one, prototype, pa.Table.from_pylist(swapped, one.store.newest(prototype).schema))
    overwrite(one, codes, one.store.read(codes).slice(0, 30))
    overwrite(one, "pool.fruit", one.store.read("pool.fruit").slice(60))
    overwrite(one, "examples.adding", one.store.read("examples.adding").slice(3))
    one.settings["recipes"]["mona"]["budget"] = {"count": 9}
    assert one.run().made == ["adding/mona/selection[fruit|tiny]"]
    assert chosen(one) == before[:9]


def test_a_table_dropped_and_made_anew_is_one_line_that_names_it(one: Project) -> None:
    one.first_run()
    codes = one.table("codes.fruit.")
    rows = one.store.read(codes)
    one.store.drop(codes)
    for part in (rows.slice(0, 10), rows.slice(10)):
        one.store.replace(codes, part.to_batches(), rows.schema)
    one.settings["recipes"]["mona"]["budget"] = {"count": 9}
    with pytest.raises(WorkError, match=rf"table '{codes}': .* restore .* or delete that folder"):
        one.run()


def test_an_sae_trained_anew_and_killed_before_its_record_is_as_if_it_were_not(
    one: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.first_run()
    before = chosen(one)
    records = build_resources(one.config)["records"]
    digest = records.get(records.current("sae[tiny]")).about["sae"]

    def killed(*_: Any, **__: Any) -> Any:
        raise SystemExit("killed")

    one.settings["models"]["tiny"]["sae"]["train"]["learning_rate"] = 0.002
    with monkeypatch.context() as patch:
        patch.setattr(sae_asset, "finished", killed)
        with pytest.raises(BaseException, match="killed"):
            one.run()
    kept = sorted(path.name for path in (one.root / "store" / "sae" / "tiny").iterdir())
    assert len(kept) == 2
    assert digest in kept
    assert records.get(records.current("sae[tiny]")).about["sae"] == digest
    one.settings["models"]["tiny"]["sae"]["train"]["learning_rate"] = 0.003
    one.settings["recipes"]["mona"]["budget"] = {"count": 9}
    one.run()
    assert chosen(one) == before[:9]
    assert set(one.status().values()) == {"fresh"}


def test_a_file_changed_while_it_is_read_replaces_nothing(
    one: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.first_run()
    before = one.store.version("pool.fruit")
    build = raw_pool.build_pool

    def beside(*given: Any, **options: Any) -> Any:
        made = build(*given, **options)
        one.write_rows("fruit", one.rows("fruit")[7:])
        return made

    one.write_rows("fruit", one.rows("fruit")[1:])
    with monkeypatch.context() as patch:
        patch.setattr(raw_pool, "build_pool", beside)
        with pytest.raises(WorkError, match=r"datasets\.fruit: a file changed while it was read"):
            one.run()
    assert one.store.version("pool.fruit") == before
    one.run()
    assert one.store.count("pool.fruit") == 112
