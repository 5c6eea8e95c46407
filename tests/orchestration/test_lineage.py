"""Lineage against a list the test keeps itself, and verify against injected faults."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from assets.keys import label, selection
from mona.errors import RequestError
from orchestration.definitions import build_resources
from orchestration.lineage import chain, uses_of_origin, uses_of_sample
from orchestration.verify import Finding
from tests.orchestration.conftest import Project, findings, sums, verses

SUBSET = label(selection("adding", "mona"), "fruit|tiny")


@pytest.fixture
def one(project: Project) -> Project:
    """One dataset, and a control beside the recipe."""
    project.settings["datasets"].pop("verse")
    project.settings["recipes"]["random"] = {"selector": "random", "budget": {"count": 10}}
    return project


def chosen(project: Project) -> list[tuple[str, int]]:
    rows = project.store.read("selection.adding.mona.fruit.tiny", ["sample_id", "rank"])
    return [(row["sample_id"], row["rank"]) for row in rows.to_pylist()]


def test_every_step_of_a_moving_project_stays_answerable(one: Project) -> None:
    records = build_resources(one.config)["records"]
    history: list[tuple[str, list[tuple[str, int]], dict[str, str]]] = []

    def step() -> None:
        one.run()
        made = records.current(SUBSET)
        assert made is not None
        above = {link.record.asset: link.digest for link in chain(records, SUBSET)}
        history.append((made, chosen(one), above))

    one.first_run()
    step()
    one.write_rows("fruit", [*one.rows("fruit"), *sums(200, 12)])
    step()
    one.write_rows("fruit", [*one.rows("fruit")[5:], *verses(300, 3)])
    step()
    one.settings["models"]["tiny"]["sae"]["train"]["learning_rate"] = 0.002
    step()
    one.settings["models"]["tiny"]["k"] = 4
    step()

    assert len({made for made, _, _ in history}) == 5
    for made, rows, above in history:
        record = records.get(made)
        assert set(above) == {
            SUBSET,
            "raw_pool[fruit]",
            "sae[tiny]",
            "sae_codes[fruit|tiny]",
            "adding/prototype[tiny]",
            "adding/examples",
        }
        closure = records.closure([made])
        assert set(above.values()) <= set(closure)
        # The rows consumed then are still readable now.
        (name,) = record.tables
        kept = one.store.read(name, ["sample_id", "rank"], version=record.tables[name].version)
        assert [(r["sample_id"], r["rank"]) for r in kept.to_pylist()] == rows
        pool = records.get(record.inputs["raw_pool[fruit]"])
        seal = pool.tables["pool.fruit"]
        ids = one.store.sample_ids("pool.fruit", version=seal.version).to_pylist()
        assert {sample for sample, _ in rows} <= set(ids)

    # The SAE is pinned over both refreshes and new after its own change; K made codes new.
    saes = [above["sae[tiny]"] for _, _, above in history]
    codes = [above["sae_codes[fruit|tiny]"] for _, _, above in history]
    assert len(set(saes[:3])) == 1
    assert saes[3] != saes[2]
    assert saes[4] == saes[3]
    assert len(set(codes)) == 5

    expected: dict[str, list[tuple[str, int]]] = {}
    for made, rows, _ in history:
        for sample, rank in rows:
            expected.setdefault(sample, []).append((made, rank))
    for sample, places in expected.items():
        uses = [u for u in uses_of_sample(records, one.store, sample) if u.subset == SUBSET]
        assert sorted((use.record, use.rank) for use in uses) == sorted(places)
        assert [u.record for u in uses if u.current] == [
            made for made, _ in places if made == history[-1][0]
        ]
    by_source = uses_of_origin(records, one.store, "source", "fruit")
    mine = [use for use in by_source if use.subset == SUBSET]
    assert len(mine) == sum(len(rows) for _, rows, _ in history)
    assert uses_of_origin(records, one.store, "licence", "CC0-1.0") == by_source
    assert uses_of_origin(records, one.store, "licence", "MIT") == []
    assert findings(one) == []


def audited_files(project: Project) -> list[Path]:
    """Every file the records refer to, and the records themselves."""
    resources = build_resources(project.config)
    records = resources["records"]
    home = Path(records.home)
    found = {home / "records" / f"{digest}.json" for digest in records.digests()}
    for record in records.closure(records.pointers().values()).values():
        found |= {home / path for path in record.files}
        for name, seal in record.tables.items():
            found |= {home / "tables" / f"{name}.lance" / path for path in seal.files}
    return sorted(found)


def names(project: Project, damaged: Path, found: list[Finding]) -> bool:
    """Whether a finding names the damaged file."""
    tail = damaged.name
    return any(tail in finding.what or tail == f"{finding.record}.json" for finding in found)


def test_every_fault_is_named_and_none_where_nothing_is_wrong(one: Project) -> None:
    one.first_run()
    assert findings(one) == []
    files = audited_files(one)
    kinds = {path.parent.name for path in files}
    assert {"data", "_versions", "records"} <= kinds
    draw = random.Random(7)
    for path in draw.sample(files, 20):
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert names(one, path, findings(one)), f"{path} byte {place}"
        path.write_bytes(whole)

    data = [path for path in files if path.parent.name == "data"]
    first, second = data[0], data[-1]
    kept = first.read_bytes(), second.read_bytes()
    first.write_bytes(kept[1])
    second.write_bytes(kept[0])
    swapped = findings(one)
    assert names(one, first, swapped)
    assert names(one, second, swapped)
    first.write_bytes(kept[0][:-9])
    second.write_bytes(kept[1])
    assert names(one, first, findings(one))
    first.unlink()
    missing = findings(one)
    assert names(one, first, missing)
    assert any(finding.problem == "the file is missing" for finding in missing)
    first.write_bytes(kept[0])
    assert findings(one) == []


def test_a_row_edited_through_the_store_is_named(one: Project) -> None:
    one.first_run()
    table = one.store.open("selection.adding.mona.fruit.tiny").to_lance()
    table.update({"score": "0.99"}, where="rank = 3")
    # A new version does not touch what was recorded, but is not what the store says it is.
    (found,) = findings(one)
    assert "newest version is" in found.problem
    assert (found.asset, found.what) == (SUBSET, "table selection.adding.mona.fruit.tiny")
    resources = build_resources(one.config)
    records = resources["records"]
    record = records.get(records.current(SUBSET))
    (name,) = record.tables
    seal = record.tables[name]
    from dataclasses import replace

    from resources.records import seal_at

    forged = seal_at(one.store, name, one.store.version(name))
    records.publish(replace(record, tables={name: replace(forged, content=seal.content)}))
    problems = [finding.problem for finding in findings(one)]
    assert any("rows of content" in problem for problem in problems)
    assert any("not the one of Dagster's last" in problem for problem in problems)


def test_dagster_and_the_records_must_agree(one: Project) -> None:
    one.first_run()
    resources = build_resources(one.config)
    records = resources["records"]
    from dataclasses import replace

    record = records.get(records.current(SUBSET))
    other = records.current("raw_pool[fruit]")
    assert record.kind == "selection"
    pool = records.get(other)
    lying = records.publish(replace(pool, data_version="0" * 64))
    records.publish(replace(record, inputs={**record.inputs, "raw_pool[fruit]": lying}))
    what = [(finding.asset, finding.what) for finding in findings(one)]
    assert (SUBSET, "record") in what
    assert ("raw_pool[fruit]", "record") in what


def test_the_command_line_answers_an_auditor(one: Project, capsys: Any) -> None:
    from orchestration import cli

    one.first_run()

    def mona(*words: str) -> str:
        cli.cli([*words, "--config", str(one.config_path)], standalone_mode=False)
        return str(capsys.readouterr().out)

    shown = mona("lineage", "selection", "adding/mona")
    digest = (one.root / "fruit.jsonl").read_bytes()
    import hashlib

    assert hashlib.sha256(digest).hexdigest() in shown
    assert "10 of fruit (CC0-1.0)" in shown
    (sample, rank) = chosen(one)[0]
    uses = json.loads(mona("lineage", "sample", sample, "--json"))
    assert [(use["subset"], use["rank"]) for use in uses if use["subset"] == SUBSET] == [
        (SUBSET, rank)
    ]
    with pytest.raises(RequestError, match=r"there are: fruit \(120\)"):
        mona("lineage", "source", "elsewhere")
    assert "every digest as recorded" in mona("lineage", "verify")
