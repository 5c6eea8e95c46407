"""`mona pool show`, a refresh that would lose rows, and source files read again."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import Any

import pytest
from click.testing import CliRunner

from mona.errors import WorkError
from mona.pool import account
from mona.tokens import Renderer, SetAside
from orchestration.check import Scope, _sources
from orchestration.cli import cli
from orchestration.closing import encoding_accounts, pool_accounts
from orchestration.config import load_config
from orchestration.definitions import build_resources
from orchestration.home import _damage_of_history
from orchestration.rehash import changed_sources
from tests.orchestration.conftest import Project, sums, write_rows


def shown(project: Project, *options: str) -> Any:
    command = ["pool", "show", "fruit", "--config", str(project.config_path), *options]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout) if "--json" in options else done.stdout


def with_faults(project: Project) -> None:
    lines = (project.root / "fruit.jsonl").read_text()
    folder = project.root / "fruit"
    (folder / "b").mkdir(parents=True)
    (folder / "a.jsonl").write_text(lines)
    rows = [{"prompt": "Say fig.", "completion": "fig", "theme": "trees"}, {"x": 1}]
    write_rows(folder / "b" / "c.jsonl", rows)
    (folder / "README.md").write_text("Of fruit.")
    project.settings["datasets"]["fruit"]["sources"][0]["path"] = "fruit"
    project.write()


def test_a_pool_is_shown_before_and_after_it_is_made(project: Project) -> None:
    with_faults(project)
    before = shown(project, "--json", "--limit", "2")
    assert (before["made"], before["faults"]) == (False, [])
    assert before["sources"] == [
        {"source": "fruit", "samples": 121, "set aside": 1, "nothing reads": "theme (1)"}
    ]
    assert [(row["file"], row["line"]) for row in before["rows"]] == [
        ("a.jsonl", 1),
        ("a.jsonl", 2),
    ]
    bad = {
        "file": "b/c.jsonl",
        "line": 2,
        "reason": "no known format has the fields ['x']",
        "source": "fruit",
    }
    assert shown(project, "--json", "--set-aside")["rows"] == [bad]
    text = shown(project)
    line = (
        "fruit: 121 samples of 122 rows; 1 set aside (1 no known format has the fields ...), "
        "1 files passed over, nothing reads theme"
    )
    assert text.startswith(f"{line} (not made yet)\n")
    assert "A basket holds 0 apples" in text
    # Nothing was made by looking.
    assert not (project.root / "store" / "tables").exists()

    project.run(datasets=("fruit",), upto="raw_pool")
    after = shown(project, "--json", "--limit", "2")
    assert after["made"]
    assert {k: after[k] for k in ("sources", "accounts")} == {
        k: before[k] for k in ("sources", "accounts")
    }
    assert [row["sample_id"] for row in after["rows"]] == [r["sample_id"] for r in before["rows"]]
    assert shown(project, "--json", "--set-aside")["rows"] == [bad]
    assert shown(project, "--set-aside").startswith(f"{line}\n")
    records = build_resources(project.config)["records"]
    about = records.get(records.current("raw_pool[fruit]")).about
    assert account("fruit", about) == line
    # What a run says at its end of the pools it made, and of no other asset.
    assert pool_accounts(records, ["sae[tiny]", "raw_pool[fruit]"]) == [line]
    assert sorted(about["sources"]) == ["fruit/a.jsonl", "fruit/b/c.jsonl"]


def test_a_preview_says_what_would_refuse_the_pool(project: Project) -> None:
    project.write_rows("fruit", [{"Frage": "a", "Antwort": "b"}])
    seen = shown(project, "--json", "--set-aside")
    assert len(seen["faults"]) == 2
    assert "the file gives no row" in seen["faults"][0]
    assert [row["line"] for row in seen["rows"]] == [1]
    assert "mona run would refuse it: source 'fruit': fruit.jsonl:1: no known format" in shown(
        project
    )


def test_check_names_the_files_that_will_be_refused(project: Project) -> None:
    def faults() -> list[str]:
        resources = build_resources(project.config)
        scope = Scope.of(project.config, resources["sources"], resources["shelf"])
        return list(_sources(scope))

    folder = project.root / "parts"
    folder.mkdir()
    rows = [{"Frage": f"Wie viel ist {n}?", "Antwort": str(n)} for n in range(5)]
    write_rows(folder / "good.jsonl", rows)
    source = project.settings["datasets"]["fruit"]["sources"][0]
    source["path"] = "parts"
    (fault,) = faults()
    assert fault.startswith("datasets.fruit.sources.fruit: good.jsonl:1: no known format has")
    assert "'columns: {prompt: ..., answer: ...}'" in fault
    source["columns"] = {"prompt": "Frage", "answer": "Antwort"}
    assert faults() == []
    for number in range(5):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{number}\n"
        (folder / f"{number}.jsonl").write_text(pointer)
    assert [fault.partition("sources.fruit: ")[2] for fault in faults()] == [
        *(
            f"{number}.jsonl:1: the file is a Git LFS pointer, not the data: git lfs pull"
            for number in range(3)
        ),
        "2 more files are lost or give no row",
    ]
    source["allow_partial"] = True
    assert faults() == []


def test_errors_that_wrap_each_other_are_looked_through_once() -> None:
    inner, outer = ValueError("inner"), RuntimeError("outer")
    inner.__context__, outer.__cause__ = outer, inner
    assert _damage_of_history(outer) is None
    inner.__context__ = sqlite3.DatabaseError("malformed")
    assert _damage_of_history(outer) == "malformed"


def test_a_refresh_that_would_lose_many_samples_replaces_nothing(project: Project) -> None:
    def refresh() -> list[str]:
        return project.run(datasets=("fruit",), upto="raw_pool").made

    refresh()
    rows = project.rows("fruit")
    project.write_rows("fruit", rows[:107] + sums(300, 50))
    with pytest.raises(WorkError, match=r"would lose 13 of 120 samples \(11%, allowed 10%\)") as e:
        refresh()
    assert "max_loss: 1" in str(e.value)
    assert shown(project, "--json")["accounts"]["rows"] == 120
    # An edit of the entry says itself that other rows are meant.
    project.settings["datasets"]["fruit"]["subsample"] = {"rows": 10}
    assert refresh() == ["raw_pool[fruit]"]
    assert shown(project, "--json")["accounts"]["not drawn"] == 147


def test_source_files_read_again_are_compared_with_the_record(project: Project) -> None:
    project.first_run(datasets=("fruit",), upto="raw_pool")
    config = load_config(project.config_path)
    records = build_resources(config)["records"]
    assert list(changed_sources(config, records)) == []
    path = project.root / "fruit.jsonl"
    path.write_text(path.read_text().replace("apple", "maple"))
    (finding,) = changed_sources(config, records)
    assert (finding.asset, finding.what) == ("raw_pool[fruit]", "source fruit/fruit.jsonl")
    os.unlink(path)  # noqa: PTH108
    (finding,) = changed_sources(config, records)
    assert "no file at" in finding.problem


def test_what_a_template_refuses_is_shown_with_its_place_and_never_chosen(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.settings["datasets"].pop("verse")
    project.settings["models"]["tiny"]["token_cache_gb"] = 0.0
    project.settings["recipes"] = {
        "mona": {"budget": {"share": 1.0}},
        "random": {"selector": "random", "budget": {"share": 1.0}},
    }
    render = Renderer.render_batch

    def refusing(self: Renderer, conversations: Any) -> list[Any]:
        made = render(self, conversations)
        return [
            SetAside("no baskets of 7 grapes") if "holds 7 grapes" in text[0].content else row
            for text, row in zip(conversations, made, strict=True)
        ]

    monkeypatch.setattr(Renderer, "render_batch", refusing)
    done = project.run()
    records = build_resources(project.config)["records"]
    (said,) = encoding_accounts(records, done.made)
    assert said.startswith("fruit: 1 samples are set aside, which the template of 'tiny' can't")
    (row,) = shown(project, "--json", "--set-aside")["rows"]
    assert (row["file"], row["line"]) == ("fruit.jsonl", 8)
    assert row["reason"] == "template of 'tiny': no baskets of 7 grapes"
    for table in ("selection.adding.mona.fruit.tiny", "selection.controls.random.fruit.tiny"):
        chosen = project.store.sample_ids(table).to_pylist()
        assert len(chosen) == 119
        assert row["sample_id"] not in chosen
