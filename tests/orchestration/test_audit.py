"""What an auditor asks: licences by any spelling, what a takedown would take, and a verification
that names what was changed behind the records' back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pytest

from assets.keys import label, selection
from mona.errors import RequestError, WorkError
from mona.publishing import unfinished
from orchestration import cli
from orchestration.definitions import build_resources
from orchestration.lineage import names_origin
from orchestration.verify import read_audit
from orchestration.verify_amendments import amendment_problems
from orchestration.verify_history import INDEX
from orchestration.verify_tables import newest_problems, tag_problems
from resources.exports import Exports
from resources.records import Records
from resources.withdrawals import Withdrawals
from tests.orchestration.conftest import Project, findings, small_project, sums

PART = "fruit|tiny"
SUBSET = label(selection("adding", "mona"), PART)
TABLE = "selection.adding.mona.fruit.tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, made_once: Path) -> Project:
    """One dataset of two sources under two licences, and a control that takes all of it."""
    project = small_project(tmp_path_factory.mktemp("made"), tiny_llama, made_once)
    project.settings["datasets"].pop("verse")
    project.settings["datasets"]["fruit"]["sources"] += [
        {"name": "second", "path": "second.jsonl", "licence": "MIT"}
    ]
    project.settings["recipes"]["all"] = {"selector": "all"}
    project.write_rows("second", sums(200, 20))
    project.first_run()
    return project


@pytest.fixture(scope="module")
def taken(made: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same after one sample was withdrawn."""
    project = made.copied_to(tmp_path_factory.mktemp("taken"))
    run(project, "withdraw", "--yes", "--sample", chosen(project), "--reason", "asked")
    return project


@pytest.fixture
def one(made: Project, tmp_path: Path) -> Project:
    return made.copied_to(tmp_path)


def run(project: Project, *words: str) -> None:
    project.write()
    cli.cli([*words, "--config", str(project.config_path)], standalone_mode=False)


@pytest.fixture
def mona(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A command's standard output, or with --json what it says."""

    def call(project: Project, *words: str) -> Any:
        capsys.readouterr()
        run(project, *words)
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in words else out

    return call


def records_of(project: Project) -> Records:
    found: Records = build_resources(project.config)["records"]
    return found


def chosen(project: Project, rank: int = 1) -> str:
    rows = project.store.read(TABLE, ["sample_id"], where=f"rank = {rank}")
    return str(rows.column("sample_id")[0].as_py())


def said(project: Project) -> list[str]:
    return [f"{found.asset} {found.what}: {found.problem}" for found in findings(project)]


@pytest.mark.parametrize(
    ("asked", "value", "meant"),
    [
        ("mit", "MIT", True),
        ("MIT", "MIT OR Apache-2.0", True),
        ("apache-2.0 or mit", "MIT OR Apache-2.0", True),
        ("MIT AND Apache-2.0", "MIT", False),
        ("GPL-2.0+", "gpl-2.0-or-later", True),
        ("GPL-3.0", "GPL-3.0-only", True),
        ("GPL-3.0", "GPL-3.0-or-later", False),
        ("LGPL-2.1", "(lgpl-2.1-only)", True),
        ("Apache 2.0", "Apache-2.0", True),
        ("CC-BY-4.0", "CC-BY-SA-4.0", False),
        ("MIT", "MIT-0", False),
    ],
)
def test_licences_are_compared_as_spdx_does(asked: str, value: str, meant: bool) -> None:
    assert names_origin("licence", asked, value) is meant


def test_uses_are_totals_first_and_a_name_never_seen_says_what_there_is(
    made: Project, mona: Any
) -> None:
    totals = {row["subset"]: row for row in mona(made, "lineage", "licence", "mit", "--json")}
    everything = totals["controls/all/selection[fruit|tiny]"]
    assert (everything["samples"], everything["licences"]) == (20, ["MIT"])
    rows = mona(made, "lineage", "licence", "Mit", "--rows", "--json")
    assert len(rows) == sum(row["samples"] for row in totals.values())
    assert {o["licence"] for row in rows for o in row["origins"]} == {"MIT"}
    assert "20" in mona(made, "lineage", "source", "second")
    cases = [
        ("licence", "mitt", "no sample ever had a licence called 'mitt'; there are: CC0-1.0 (120)"),
        ("source", "sec", "no sample ever had a source called 'sec'; there are: fruit (120), sec"),
        ("sample", "0" * 32, "no pool, target or subset has a sample"),
        ("sample", "a'b", "is no sample id"),
    ]
    for kind, name, message in cases:
        with pytest.raises(RequestError) as error:
            mona(made, "lineage", kind, name)
        assert message in str(error.value)


def test_what_no_subset_holds_is_no_name_never_seen(one: Project, mona: Any) -> None:
    used = {chosen(one, rank) for rank in range(1, 11)}
    pool = one.store.sample_ids("pool.fruit").to_pylist()
    one.settings["recipes"].pop("all")
    records = records_of(one)
    control = records.current("controls/all/selection[fruit|tiny]")
    (Path(records.home) / "records" / f"{control}.json").unlink()
    (other,) = [key for key in pool if key not in used][:1]
    assert "no subset ever held sample" in mona(one, "lineage", "sample", other)


def test_a_withdrawal_is_shown_first_and_nobody_to_ask_is_refused(
    one: Project, mona: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = chosen(one)
    out = one.root / "out.jsonl"
    mona(one, "export", "adding/mona", "--format", "jsonl", "--out", str(out))
    version = one.store.version("pool.fruit")
    words = ("withdraw", "--sample", sample, "--reason", "asked")
    shown = mona(one, *words, "--dry-run", "--json")
    assert shown["samples"] == 1
    assert shown["tables"]["pool.fruit"] == 1
    assert {name.split(".")[0] for name in shown["tables"]} >= {"pool", "codes", "activations"}
    assert shown["exports"] == {str(out): 1}
    assert SUBSET in shown["tainted"]
    with pytest.raises(RequestError, match="--yes withdraws, nothing was"):
        mona(one, *words)
    assert f"taints {SUBSET}" in capsys.readouterr().err
    # Asked on a terminal, and no is the answer.
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: (_ for _ in ()).throw(click.Abort()))
    with pytest.raises(click.Abort):
        mona(one, *words)
    assert Withdrawals(one.config.home).all() == []
    assert one.store.version("pool.fruit") == version
    monkeypatch.setattr(click, "confirm", lambda *_, **__: True)
    assert "1 samples" in mona(one, *words)
    assert sample not in out.read_text()
    again = mona(one, *words, "--dry-run", "--json")
    assert again["standing"].startswith(", complete since ")
    assert again["tables"] == {}


def test_a_withdrawal_reads_every_record_once(
    one: Project, mona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    body = Records.body
    monkeypatch.setattr(Records, "body", lambda self, d: read.append(d) or body(self, d))
    sample = chosen(one)
    there = records_of(one).digests()
    mona(one, "withdraw", "--yes", "--sample", sample, "--reason", "asked")
    amended = records_of(one).amended()
    steps = sum(len(records_of(one).amendment(digest).steps) for digest in amended)  # type: ignore[union-attr]
    assert amended
    # Once, and again only what it has just amended.
    assert set(read) == set(there)
    assert len(read) <= len(there) + steps


def test_no_export_keeps_a_withdrawal_from_its_end(
    one: Project, mona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, folder = chosen(one), one.root / "out"
    one.settings["recipes"]["mona"]["finetune"] = {"lora": {"rank": 4}}

    def export(name: str, fmt: str) -> Path:
        mona(one, "export", "adding/mona", "--format", fmt, "--out", str(folder / name))
        return folder / name

    trainer = export("trainer", "llamafactory")
    assert (trainer / "trainer.yaml").exists()
    broken, binary, gone = export("cut", "sharegpt"), export("rows", "jsonl"), export("g", "jsonl")
    broken.write_text(broken.read_text()[:-20])
    binary.write_bytes(b"PAR1\xff\x00")
    gone.unlink()
    # Killed in between: the new text lies beside the old file, the ledger already names it.
    late, early = export("late.jsonl", "jsonl"), folder / "early.jsonl"

    def killed(*_: Any) -> None:
        raise SystemExit  # what a kill leaves, below, is put back by hand

    for path in (late, early):
        with monkeypatch.context() as patch:
            patch.setattr("mona.exports._files._json", killed)
            with pytest.raises(SystemExit):
                mona(
                    one, "export", "adding/mona", "--format", "jsonl", "--out", str(path), "--force"
                )
        assert not unfinished(path).exists()
    notes = Path(one.config.home) / "exports"
    assert not list(notes.glob("*.begun"))  # an error is no kill: all is as it was
    ids = [chosen(one, rank) for rank in range(1, 11)]
    for path in (late, early):
        with monkeypatch.context() as patch:
            patch.setattr(Exports, "settle", killed)
            with (
                pytest.raises(SystemExit),
                Exports(one.config.home).writing("r", "fruit", ids, {path: "jsonl"}),
            ):
                unfinished(path).write_text(json.dumps({"sample_id": sample, "text": "half"}))
    assert len(list(notes.glob("*.begun"))) == 2
    (notes / "damaged.json").write_text("{")
    # As main noted it before: a path with its digest and no word on what it is.
    old = json.loads((note := note_of(one, trainer / "trainer.json")).read_text())
    old["files"] = {name: file["sha256"] for name, file in old["files"].items()}
    old.pop("finished")
    note.write_text(json.dumps(old))

    report = mona(one, "withdraw", "--yes", "--sample", sample, "--reason", "asked", "--json")
    assert Withdrawals(one.config.home).unfinished() == []
    assert report["exports"] == {str(trainer / "trainer.json"): 1, str(late): 1}
    assert not unfinished(late).exists()
    assert not unfinished(early).exists()
    by_hand = "\n".join(report["by_hand"])
    for name in ("cut", "rows", "g", "damaged.json"):
        assert str((notes if "damaged" in name else folder) / name) in by_hand
    assert "early" not in by_hand
    for path in (trainer / "trainer.json", late):
        assert sample not in path.read_text()
    one.settings["recipes"]["mona"].pop("finetune")
    assert one.run(upto="raw_pool").made == ["raw_pool[fruit]"]  # nothing stands in its way


def note_of(project: Project, file: Path) -> Path:
    notes = (Path(project.config.home) / "exports").glob("*.json")
    return next(note for note in notes if str(file) in note.read_text())


def amendment_of(project: Project, asset: str = "raw_pool[fruit]") -> Path:
    records = records_of(project)
    folder = Path(records.home) / "records" / "amended"
    return folder / f"{records.current(asset)}.json"


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def drop_row(seal: dict[str, Any]) -> None:
    seal["rows"] -= 1


AMENDED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a withdrawal that was never": (
        lambda a: a["withdrawals"].append("0" * 16),
        "names withdrawal 0000000000000000, which the ledger does not have",
    ),
    "no steps": (lambda a: a.pop("steps"), "was not made by withdrawal"),
    "a row more": (
        lambda a: [drop_row(a["steps"][0]["seal"]), drop_row(a["tables"]["pool.fruit"])],
        "2 rows are gone from pool.fruit, it accounts for 1",
    ),
    "a row that nobody named": (
        lambda a: a["steps"][0]["gone"].append("f" * 32),
        "which withdrawal",
    ),
    "an edited step": (
        lambda a: a["steps"][0].update(previous="0" * 64),
        "does not follow the one before",
    ),
    "a lost step": (lambda a: a["steps"].clear(), "was not made by withdrawal"),
    "another sum": (
        lambda a: a["removed"].update({"f" * 32: "00"}),
        "says something else than its steps",
    ),
}


@pytest.mark.parametrize("case", AMENDED)
def test_an_amendment_must_follow_from_a_withdrawal(
    case: str, taken: Project, tmp_path: Path
) -> None:
    change, problem = AMENDED[case]
    project = taken.copied_to(tmp_path)
    path = amendment_of(project)
    edited(path, change)
    records = records_of(project)
    found = list(amendment_problems(records, read_audit(records).known))
    assert any(path.name in what and problem in how for _, what, how in found), found


def test_amendments_of_stores_made_before_are_read(taken: Project, tmp_path: Path) -> None:
    project = taken.copied_to(tmp_path)
    records, path = records_of(project), amendment_of(project)
    for amended in path.parent.glob("*.json"):
        edited(amended, lambda a: a.pop("steps"))
    (closed,) = (Path(project.config.home) / "withdrawals").glob("*.done")
    edited(closed, lambda report: report.pop("amendments"))
    known = read_audit(records).known
    assert list(amendment_problems(records, known)) == []
    edited(path, lambda a: drop_row(a["tables"]["pool.fruit"]))
    (found,) = amendment_problems(records, known)
    assert found[2] == "2 rows are gone from pool.fruit, more than its withdrawals name"
    edited(path, lambda a: a["removed"].update({"f" * 32: "00"}))
    assert any("none of its withdrawals names" in f[2] for f in amendment_problems(records, known))


def test_a_withdrawal_and_its_amendments_stand_together(taken: Project, tmp_path: Path) -> None:
    project = taken.copied_to(tmp_path)
    assert said(project) == []
    path, ledger = amendment_of(project), Path(project.config.home) / "withdrawals"
    kept = path.read_bytes()
    path.unlink()
    assert any("is missing: withdrawal" in line for line in said(project))
    path.write_bytes(kept)
    (closed,) = ledger.glob("*.done")
    closed.rename(closed.with_suffix(".away"))
    assert any("is not complete: mona run completes it" in line for line in said(project))
    closed.with_suffix(".away").write_text("{")
    closed.with_suffix(".away").rename(closed)
    assert any("is no report of a withdrawal" in line for line in said(project))


def test_a_hand_written_amendment_of_an_untouched_record_is_named(one: Project) -> None:
    records = records_of(one)
    digest = records.current("raw_pool[fruit]")
    assert digest is not None
    version = one.store.version("pool.fruit")
    one.store.delete("pool.fruit", [chosen(one)])
    from resources.records import sealed

    seal = sealed(one.store, "pool.fruit")
    assert seal.version > version
    records.amend(digest, "pool.fruit", seal, gone=[], removed={}, by="f" * 16)
    problems = "\n".join(said(one))
    assert "which the ledger does not have" in problems
    assert "1 rows are gone from pool.fruit" not in problems  # the ledger names no such rows


CHANGED: dict[str, Callable[[Project], str]] = {
    "a pool row edited": lambda p: update(p, "pool.fruit", {"n_chars": "1"}, "n_chars > 0"),
    "a prototype overwritten": lambda p: overwrite(p, p.table("prototype.")),
    "a code edited": lambda p: update(p, p.table("codes.fruit."), {"l1": "0.5"}, "length > 0"),
    "codes deleted": lambda p: delete(p, p.table("codes.fruit.")),
    "a chosen row edited": lambda p: update(p, TABLE, {"score": "0.99"}, "rank = 3"),
    "examples deleted": lambda p: delete(p, "examples.adding"),
    "test rows deleted": lambda p: delete(p, "test_rows.adding"),
    "a code twice": lambda p: twice(p, p.table("example_codes.")),
}


def update(project: Project, table: str, values: dict[str, str], where: str) -> str:
    project.store.open(table).to_lance().update(values, where=where)
    return table


def delete(project: Project, table: str) -> str:
    ids = project.store.sample_ids(table).to_pylist()
    project.store.delete(table, ids[:1])
    return table


def overwrite(project: Project, table: str) -> str:
    rows = project.store.read(table)
    values = pa.array([list(reversed(v)) for v in rows.column("values").to_pylist()])
    other = rows.set_column(1, "values", values.cast(rows.schema.field("values").type))
    project.store.replace(table, other.to_batches(), project.store.open(table).schema)
    return table


def twice(project: Project, table: str) -> str:
    rows = project.store.read(table)
    project.store.open(table).add(rows.slice(0, 1))
    return table


@pytest.mark.parametrize("case", CHANGED)
def test_a_table_changed_outside_is_named(case: str, one: Project) -> None:
    versions = {name: one.store.version(name) for name in one.store.table_names()}
    table = CHANGED[case](one)
    audit = read_audit(records_of(one))
    found = list(newest_problems(one.store, audit.current, set(versions)))
    assert {what for _, what, _ in found} == {f"table {table}"}
    expected = f"newest version is {one.store.version(table)}, the record sealed {versions[table]}"
    assert all(how.startswith(expected) for _, _, how in found)


def test_tables_that_move_on_as_they_should_are_no_finding(one: Project) -> None:
    store = one.store
    # Rows of another step, cut short before its record; and rows whose sample left the pool.
    codes = one.table("codes.fruit.")
    rows = store.read(codes)
    ids = pa.array(["e" * 32], pa.string())
    store.append(codes, rows.slice(0, 1).set_column(0, store.open(codes).schema.field(0), ids))
    store.compact(codes)
    # The same rows again, as a step that was killed before its record leaves them.
    pool = store.read("pool.fruit")
    schema = store.open("pool.fruit").schema
    store.replace("pool.fruit", pool.cast(schema).to_batches(), schema)
    assert said(one) == []


def test_tags_are_covered(one: Project) -> None:
    folder = Path(one.config.home) / "tables" / "pool.fruit.lance" / "_refs" / "tags"
    tag = sorted(folder.glob("record-*.json"))[0]
    whole = tag.read_bytes()

    def named() -> list[str]:
        found = tag_problems(one.store, read_audit(records_of(one)).pinned, {"pool.fruit"})
        return [f"{what}: {problem}" for _, what, problem in found]

    assert named() == []
    for place in range(0, len(whole), len(whole) // 9):
        tag.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        noted = whole[place : place + 1].isdigit() and b"At" in whole[:place].split(b"\n")[-1]
        assert named() or noted, place  # a digit of a moment says nothing that could be compared
    for damaged in (whole[:10], b"", whole.replace(b'"version": ', b'"version": 1')):
        tag.write_bytes(damaged)
        assert named(), damaged
    assert any("tags of table pool.fruit" in line for line in said(one))
    tag.unlink()
    assert any(line.endswith(f"{tag.stem}: is missing") for line in named())
    tag.write_bytes(whole)
    assert named() == []


HISTORY: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda p: os.truncate(p, p.stat().st_size // 2), f"{INDEX}: is damaged"),
    "emptied": (lambda p: os.truncate(p, 0), f"{INDEX}: the file is empty"),
    "deleted": (lambda p: p.unlink(), f"{INDEX}: the file is missing"),
    "no database": (lambda p: p.write_bytes(b"x" * 9000), f"{INDEX}: is damaged"),
    "a home that is gone": (
        lambda p: shutil.rmtree(p.parents[2]),
        "Dagster's history has no materialisation with this record",
    ),
    "an event": (
        lambda p: sql(p, "UPDATE event_logs SET event = replace(event, 'L1', 'L2')"),
        f"events differ from {INDEX}",
    ),
    "events that are gone": (
        lambda p: sql(p, "DELETE FROM event_logs WHERE asset_key LIKE '%selection%'"),
        "Dagster's history has no materialisation with this record",
    ),
    "a newest materialisation": (
        lambda p: sql(p, "UPDATE asset_keys SET last_materialization = '{}'"),
        "differs from its event",
    ),
    "a check": (
        lambda p: sql(p, "UPDATE asset_check_executions SET evaluation_event = 'passed'"),
        "a check's result of",
    ),
    "a tag": (
        lambda p: sql(p, "UPDATE asset_event_tags SET value = 'other'"),
        "is not the event's",
    ),
}


def sql(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("case", HISTORY)
def test_dagsters_own_history_is_covered(case: str, one: Project) -> None:
    change, problem = HISTORY[case]
    change(Path(one.config.home) / "dagster" / INDEX)
    assert any(problem in line for line in said(one)), said(one)


def test_a_damaged_table_is_named_with_what_to_do(one: Project) -> None:
    table = one.table("codes.fruit.")
    folder = Path(one.config.home) / "tables" / f"{table}.lance"
    newest = sorted((folder / "_versions").glob("*.manifest"))[0]
    data = max((folder / "data").glob("*.lance"), key=lambda path: path.stat().st_size)
    one.settings["recipes"]["mona"]["budget"] = {"count": 9}  # so that a step reads the codes
    whole = {path: path.read_bytes() for path in (newest, data)}
    advice = f"restore {folder} from a backup, or delete that folder"
    flipped = whole[data][:200] + bytes([whole[data][200] ^ 1]) + whole[data][201:]
    for path, damaged in ((newest, None), (newest, whole[newest][:-20]), (data, flipped)):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(WorkError) as error:
            one.run()
        assert f"table '{table}'" in str(error.value)
        assert advice in str(error.value)
        assert "\n" not in str(error.value)
        path.write_bytes(whole[path])
    shutil.rmtree(folder)
    assert one.status()[f"sae_codes[{PART}]"] == "missing"
    assert set(one.run().made) >= {f"sae_codes[{PART}]", SUBSET}
    assert set(one.status().values()) == {"fresh"}


def test_a_withdrawal_that_meets_damage_says_so_and_can_be_completed(
    one: Project, mona: Any
) -> None:
    sample, table = chosen(one), one.table("codes.fruit.")
    folder = Path(one.config.home) / "tables" / f"{table}.lance"
    for data in (folder / "data").glob("*.lance"):
        data.write_bytes(data.read_bytes()[:-30])
    words = ("withdraw", "--yes", "--sample", sample, "--reason", "asked")
    with pytest.raises(WorkError) as error:
        mona(one, *words)
    assert f"table '{table}': can't be read" in str(error.value)
    assert f"restore {folder} from a backup, or delete that folder" in str(error.value)
    assert len(Withdrawals(one.config.home).unfinished()) == 1
    shutil.rmtree(folder)
    mona(one, *words)
    assert Withdrawals(one.config.home).unfinished() == []
    # A history that SQLite can't read is one line too, wherever it is met.
    index = Path(one.config.home) / "dagster" / INDEX
    os.truncate(index, index.stat().st_size // 2)
    for command in (words, ("status",), ("gc",)):
        with pytest.raises(WorkError, match="Dagster's history is damaged|index.db: is damaged"):
            mona(one, *command)
