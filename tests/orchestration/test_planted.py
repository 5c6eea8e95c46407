"""A row in a table of every declared kind, withdrawn: nothing of it is left, and others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lance.file import LanceFileReader

from mona.pool import POOL_SCHEMA
from mona.traces import BLANK
from orchestration.taints import readable
from orchestration.withdrawal_report import Report
from orchestration.withdrawal_tables import clean_tables, traces_of
from resources.records import Record, Records, sealed
from resources.store import Store
from resources.tables import KINDS, TableKind
from resources.withdrawals import Withdrawal

OWNERS = {"dataset": "fruit", "target": "adding"}
# The rows that go, one of a pool and one of a target, and one beside each that stays.
GONE, KEPT = {"dataset": "aa", "target": "bb"}, {"dataset": "cc", "target": "dd"}
TURN = {"aa": "the secret of the first garden", "bb": "the secret of the second garden"}


def name_of(kind: TableKind) -> str:
    return ".".join([kind.name, *(OWNERS.get(part, part) for part in kind.parts)])


def value(kind: TableKind, column: str, sample: str) -> Any:
    """What a column of a table says of a sample: its text where there is text, else something
    that names the sample where it is computed of it."""
    if column == "messages":
        return [{"role": "user", "content": TURN.get(sample, f"what {sample} says in its turn")}]
    if column == "origins":
        return [{"source": "notes", "licence": "MIT", "file": "notes.jsonl", "line": 1}]
    if column == "n_chars":
        return 7
    held = kind.columns[column]
    if held == "id":
        return sample
    if held == "text":
        return TURN.get(sample, f"what {sample} says in its turn")
    return f"a value of {sample}" if held == "value" else "a fact"


def plant(store: Store, kind: TableKind) -> None:
    types = {field.name: field.type for field in POOL_SCHEMA}
    schema = pa.schema([(c, types.get(c, pa.string())) for c in kind.columns])
    samples = [GONE[kind.whose], KEPT[kind.whose]] if kind.key else ["every row"]
    rows = [{c: value(kind, c, s) for c in kind.columns} for s in samples]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    # Two versions, so that one of them is of the past.
    store.replace(name_of(kind), [batch], schema)
    store.tag(name_of(kind), "past", store.version(name_of(kind)))
    store.replace(name_of(kind), [batch], schema)


def on_disk(store: Store, name: str) -> str:
    """Every data file of a table, decoded."""
    files = (Path(store.root) / "tables" / f"{name}.lance" / "data").glob("*.lance")
    return "".join(str(LanceFileReader(str(f)).read_all().to_table().to_pylist()) for f in files)


@pytest.fixture(scope="module")
def withdrawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, str], Report]:
    """(the store after the withdrawal, table -> what it held before, the report)."""
    root = str(tmp_path_factory.mktemp("planted"))
    store, records = Store(root=root, home=root), Records(home=root)
    for kind in KINDS.values():
        plant(store, kind)
        tables = {name_of(kind): sealed(store, name_of(kind))}
        records.publish(Record(f"raw_pool[{kind.name}]", "v", tables=tables))
    before = {name_of(kind): on_disk(store, name_of(kind)) for kind in KINDS.values()}
    asked = Withdrawal(
        "asked",
        ids=tuple(GONE.values()),
        datasets=("fruit",),
        samples={"fruit": [GONE["dataset"]]},
        examples={"adding": [GONE["target"]]},
    )
    report = Report(asked.name, 2)
    clean_tables(asked, records, readable(records), store, traces_of(store, asked, report), report)
    return store, before, report


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nothing_of_a_withdrawn_row_is_left(kind: TableKind, withdrawn: Any) -> None:
    store, before, report = withdrawn
    name = name_of(kind)
    gone, kept = GONE[kind.whose], KEPT[kind.whose]
    then, now = before[name], on_disk(store, name)
    if kind.key != "sample_id" or (kind.rows == "stay" and not kind.holds_text):
        # Of no sample, or not of one that is known, or of ids and figures alone.
        assert now == then
        assert name not in report.tables
        return
    assert f"'{gone}'" in then
    assert (TURN[gone] in then) == kind.holds_text
    assert TURN[gone] not in now
    assert f"'{kept}'" in now
    assert ("what" in now) == kind.holds_text  # the other's text is there still
    assert report.tables[name] == 2  # the current version and the tagged one
    if kind.rows == "stay":
        assert f"'{gone}'" in now
        assert BLANK in now
    else:
        assert f"'{gone}'" not in now
        assert f"a value of {gone}" not in now
        assert store.sample_ids(name).to_pylist() == [kept]


def test_a_table_that_nobody_declared_is_left_to_a_person(withdrawn: Any) -> None:
    store, _, _ = withdrawn
    import lancedb

    lancedb.connect(f"{store.root}/tables").create_table("notes.fruit", pa.table({"text": ["x"]}))
    asked = Withdrawal("again", ids=("aa",), samples={"fruit": ["aa"]})
    report = Report(asked.name, 1)
    records = Records(home=store.home)
    clean_tables(asked, records, readable(records), store, traces_of(store, asked, report), report)
    assert "table of a kind that is not declared: notes.fruit" in report.by_hand


def test_what_became_no_sample_goes_with_its_source(tmp_path: Path) -> None:
    store, records = Store(root=str(tmp_path), home=str(tmp_path)), Records(home=str(tmp_path))
    columns = KINDS["quarantine"].columns
    schema = pa.schema([(column, pa.string()) for column in columns])
    rows = [
        dict.fromkeys(columns, f"of {source}") | {"source": source}
        for source in ("notes", "notes/folder", "notesbook", "other")
    ]
    store.replace("quarantine.fruit", [pa.RecordBatch.from_pylist(rows, schema=schema)], schema)
    sealed_then = sealed(store, "quarantine.fruit")
    digest = records.publish(Record("raw_pool[x]", "v", tables={"quarantine.fruit": sealed_then}))
    asked = Withdrawal("licence", source="notes", datasets=("fruit",))
    report = Report(asked.name, 0)
    clean_tables(asked, records, readable(records), store, traces_of(store, asked, report), report)
    now = on_disk(store, "quarantine.fruit")
    assert "of notesbook" in now
    assert "of other" in now
    assert "'of notes'" not in now
    assert "notes/folder" not in now
    (step,) = records.amendment(digest).steps  # type: ignore[union-attr]
    assert step.gone == ["notes", "notes/folder"]
