"""`mona gc`: what nothing refers to goes, what lineage stands on stays readable."""

from __future__ import annotations

import copy
import json
from typing import Any

import pyarrow as pa
import pytest

from orchestration.definitions import build_resources
from resources.purge import versions
from resources.withdrawals import Withdrawal, Withdrawals
from tests.orchestration.conftest import Project, findings, sums
from tests.orchestration.test_cli import mona, one_line


def gc(project: Project, *words: str) -> Any:
    done = mona(project, "gc", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(found: Any, kind: str) -> list[str]:
    return [item["name"] for item in found["items"] if item["kind"] == kind]


def stored_bytes(project: Project) -> int:
    """What the store takes, Dagster's history and log left out: a command writes into them."""
    parts = [p for p in (project.root / "store").iterdir() if p.name not in ("dagster", "logs")]
    files = (f for part in parts for f in (part, *part.rglob("*")) if f.is_file())
    return sum(f.stat().st_size for f in files)


def test_old_versions_go_and_nothing_else_changes(project: Project) -> None:
    project.first_run()
    project.write_rows("fruit", [*project.rows("fruit"), *sums(300, 5)])
    project.run()
    subsets = project.store.tags("selection.adding.mona.fruit.tiny")
    before = stored_bytes(project)
    shown = gc(project)
    assert stored_bytes(project) == before
    assert shown["unfinished"] is None
    assert names(shown, "table") == []
    codes = project.table("codes.fruit.tiny.")
    assert codes in names(shown, "versions")
    removed = gc(project, "--yes")
    assert removed["items"] == shown["items"]
    # It writes a few tags itself.
    assert before - stored_bytes(project) == pytest.approx(removed["bytes"], rel=0.02)
    assert removed["bytes"] > 100_000
    # The first subset's inputs and the current ones are left, and no other version.
    assert len(versions(project.store, codes)) == 2
    assert project.store.tags("selection.adding.mona.fruit.tiny") == subsets
    assert findings(project) == []
    assert gc(project)["items"] == []
    assert project.run().made == []
    project.write_rows("fruit", project.rows("fruit")[3:])
    assert "adding/mona/selection[fruit|tiny]" in project.run().made
    assert findings(project) == []


def test_codes_that_no_subset_was_chosen_by_go_when_they_are_superseded(project: Project) -> None:
    project.first_run(datasets=("fruit",), upto="sae_codes")
    first = project.table("codes.fruit.tiny.")
    project.settings["models"]["tiny"]["k"] = 3
    project.run(datasets=("fruit",))
    second = next(n for n in project.store.table_names() if n.startswith("codes.") and n != first)
    assert first in names(gc(project, "--yes"), "table")
    assert not project.store.exists(first)
    # These have chosen a subset, so they stay when they are superseded in turn.
    project.settings["models"]["tiny"]["k"] = 5
    project.run(datasets=("fruit",))
    assert names(gc(project, "--yes"), "table") == []
    assert project.store.exists(second)
    assert findings(project) == []


def test_a_retired_dataset_is_listed_and_goes_and_comes_back(project: Project) -> None:
    project.first_run(datasets=("fruit",))
    project.run(datasets=("verse",), upto="sae_codes")
    verse = project.settings["datasets"].pop("verse")
    status = {row["asset"]: row for row in json.loads(mona(project, "status", "--json").stdout)}
    assert status["raw_pool[verse]"]["status"] == "retired"
    assert "mona gc reclaims it" in status["raw_pool[verse]"]["why"]
    found = gc(project, "--yes")
    assert set(found["retired"]) == {
        "raw_pool[verse]",
        "activations[verse|tiny]",
        "sae_codes[verse|tiny]",
    }
    assert not [name for name in project.store.table_names() if ".verse" in name]
    assert "retired" not in mona(project, "status").stdout
    assert findings(project) == []
    project.settings["datasets"]["verse"] = verse
    assert project.status()["raw_pool[verse]"] == "missing"
    made = project.run().made
    assert {"raw_pool[verse]", "sae_codes[verse|tiny]"} <= set(made)
    assert set(project.status().values()) == {"fresh"}
    assert findings(project) == []


def test_what_a_subset_stands_on_stays_when_its_names_are_gone(project: Project) -> None:
    project.first_run()
    chosen = project.store.sample_ids("selection.adding.mona.verse.tiny").to_pylist()
    project.settings["datasets"].pop("verse")
    found = gc(project, "--yes")
    assert found["retired"]["adding/mona/selection[verse|tiny]"] is True
    assert found["retired"]["raw_pool[verse]"] is True
    assert set(chosen) <= set(project.store.sample_ids("pool.verse").to_pylist())
    assert findings(project) == []
    done = mona(project, "lineage", "sample", chosen[0], "--json")
    assert [use["subset"] for use in json.loads(done.stdout)] == [
        "adding/mona/selection[verse|tiny]"
    ]


def test_what_a_crash_left_goes_only_once_all_is_fresh(project: Project) -> None:
    project.first_run(datasets=("fruit",))
    left = project.root / "store" / "scratch" / "finetune.abc"
    left.mkdir(parents=True)
    (left / "state.pt").write_bytes(b"x" * 1000)
    schema = pa.schema([pa.field("sample_id", pa.string(), nullable=False)])
    project.store.ensure("codes.verse.tiny.abc", schema)
    found = gc(project, "--yes")
    assert found["unfinished"] == "raw_pool[verse]"
    assert project.store.exists("codes.verse.tiny.abc")
    assert left.exists()
    project.run()
    found = gc(project, "--yes")
    assert found["unfinished"] is None
    assert "codes.verse.tiny.abc" in names(found, "table")
    assert "scratch/finetune.abc" in names(found, "folder")
    assert not project.store.exists("codes.verse.tiny.abc")
    assert not left.exists()
    assert set(project.status().values()) == {"fresh"}


def test_an_sae_that_was_superseded_before_it_chose_goes(project: Project) -> None:
    project.first_run(datasets=("fruit",), upto="sae")
    folders = project.root / "store" / "sae" / "tiny"
    (first,) = (path.name for path in folders.iterdir() if path.is_dir())
    project.settings["models"]["tiny"]["sae"]["train"]["seed"] = 1
    project.run(datasets=("fruit",))
    assert names(gc(project, "--yes"), "folder") == [f"sae/tiny/{first}"]
    assert first not in [path.name for path in folders.iterdir()]
    assert findings(project) == []
    assert project.run(datasets=("fruit",)).made == []


def test_it_waits_for_nobody(project: Project) -> None:
    project.first_run(datasets=("fruit",))
    with project.store.lock("pool.fruit"):
        done = mona(project, "gc", "--yes")
    assert done.returncode == 1
    assert "another run is working on it" in one_line(done)
    home = build_resources(project.config)["records"].home
    Withdrawals(home).open(Withdrawal("a reason", ids=("0" * 32,)))
    done = mona(project, "gc", "--yes")
    assert done.returncode == 1
    assert "is not complete" in one_line(done)


@pytest.mark.parametrize("words", [(), ("--yes",)])
def test_it_says_so_when_there_is_nothing(project: Project, words: tuple[str, ...]) -> None:
    done = mona(project, "gc", *words)
    assert done.returncode == 0
    assert "nothing to reclaim" in done.stdout


def test_what_another_configuration_names_is_not_reclaimed(project: Project) -> None:
    project.first_run(datasets=("fruit",))
    # A second file over the same store, with a dataset and a target of its own.
    other = Project(project.root, copy.deepcopy(project.settings), "other.yaml")
    other.settings["datasets"].pop("fruit")
    other.settings["targets"]["counting"] = other.settings["targets"].pop("adding")
    other.settings["models"]["tiny"]["sae"]["train"]["datasets"] = ["verse"]
    project.settings["datasets"].pop("verse")
    other.run(upto="raw_pool")
    schema = pa.schema([pa.field("sample_id", pa.string(), nullable=False)])
    project.store.ensure("codes.verse.tiny.abc", schema)  # what the other's step was making

    def kept() -> bool:
        return {"pool.fruit", "pool.verse"} <= set(project.store.table_names())

    for one in (project, other):
        found = gc(one, "--yes")
        assert found["retired"] == {}
        assert found["unfinished"] is not None  # the other's, where all of its own is fresh
        assert project.store.exists("codes.verse.tiny.abc")
        assert kept()
    assert "retired" not in mona(project, "status").stdout
    # A file that nobody can read may name anything.
    other.config_path.write_text("store: [")
    done = mona(project, "gc", "--yes")
    assert done.returncode == 2
    assert str(other.config_path) in one_line(done)
    assert "mend or remove it" in one_line(done)
    assert mona(project, "status").returncode == 0
    assert kept()
    # Without its file it counts no more.
    other.config_path.unlink()
    assert "raw_pool[verse]" in gc(project, "--yes")["retired"]
    assert not project.store.exists("pool.verse")
    assert findings(project) == []


def test_encodings_of_rows_that_left_go_and_all_stays_fresh(project: Project) -> None:
    project.settings["datasets"].pop("verse")
    project.first_run()
    project.write_rows("fruit", project.rows("fruit")[6:])
    project.run()
    codes = project.table("codes.fruit.tiny.")
    assert project.store.count(codes) == 120
    shown = [item for item in gc(project)["items"] if item["kind"] == "rows"]
    assert {item["name"].split(".")[0] for item in shown} == {"activations", "codes"}
    assert all(item["why"].startswith("6 of 120 rows") for item in shown)
    gc(project, "--yes")
    assert project.store.count(codes) == 114
    assert names(gc(project), "rows") == []
    assert project.run().made == []
    assert findings(project) == []
