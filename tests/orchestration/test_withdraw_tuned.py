"""Withdrawal down to tuned models and their evaluations: exactly what used a row is tainted,
nothing shows it, and the next run makes anew exactly what was tainted."""

from __future__ import annotations

import gzip
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assets import evaluation as measuring
from assets.evaluation import results_table
from assets.keys import evaluation, finetune, label, leaderboard, selection
from mona.publishing import unfinished
from mona.registry import EXPORTS
from mona.sample import from_records
from mona.traces import BLANK
from orchestration import cli
from orchestration.definitions import build_resources
from orchestration.lineage import uses_of_sample
from orchestration.taints import CHECK
from resources.asset_partition import AssetPartition
from resources.exports import Exports
from resources.tables import KINDS
from tests.orchestration.conftest import Project, findings, measured_project, small_project
from tests.orchestration.searching import search

pytest.importorskip("trl")
pytest.importorskip("lm_eval")

PART = "fruit|tiny"
REASON = "asked by its author"
SUBSET = label(selection("eating", "mona"), PART)
TUNED = label(finetune("eating", "mona"), PART)
EVALUATED = label(evaluation("eating", "mona"), PART)
BOARD = label(leaderboard("eating"), PART)
RANDOM = {
    label(selection("controls", "random"), PART),
    label(finetune("controls", "random"), PART),
    label(evaluation("eating", "random"), PART),
}
SHOWN = ("selection", "finetune", "evaluation", "leaderboard")
MEASURED = {label(evaluation("eating", name), PART) for name in ("mona", "random", "base")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Project:
    """Chosen, tuned and measured once. The model answers as one does that knows its training
    samples by heart: every question again, and the first chosen sample after it."""
    project = measured_project(small_project(tmp_path_factory.mktemp("made"), tiny_llama))
    project.settings["targets"].pop("adding")
    answers = measuring._answers

    def by_heart(network: Any, tokenizer: Any, spec: Any, test: Any, *rest: Any) -> Any:
        found = answers(network, tokenizer, spec, test, *rest)
        questions = {
            sample["sample_id"]: sample["question"] for sample in rows(project, "test_rows")
        }
        first = " ".join(turns(project, chosen(project)[0]))
        said = [replace(row, answer=f"{questions[row.sample_id]} {first}") for row in found.rows]
        return replace(found, rows=said)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_answers", by_heart)
        project.run()
    return project


@pytest.fixture
def one(made: Project, tmp_path: Path) -> Project:
    return made.copied_to(tmp_path)


@pytest.fixture
def mona(one: Project, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> Any:
        one.write()
        capsys.readouterr()
        cli.cli([*words, "--json", "--config", str(one.config_path)], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return call


def rows(project: Project, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = project.store.read(f"{name}.eating").to_pylist()
    return found


def chosen(project: Project, recipe: str = "eating.mona") -> list[str]:
    found: list[str] = (
        project.store.read(f"selection.{recipe}.fruit.tiny").column("sample_id").to_pylist()
    )
    return found


def turns(project: Project, sample: str) -> list[str]:
    found = project.store.rows("pool.fruit", ["messages"], [sample]).column("messages")
    return [message.content for message in from_records(found.to_pylist()[0])]


def contents(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


def tainted(mona: Any) -> dict[str, str]:
    """Asset partition -> why, as `mona status` says it."""
    return {row["asset"]: row["why"] for row in mona("status") if row["status"] == "tainted"}


def failed_checks(project: Project) -> set[str]:
    """What Dagster's UI shows as standing on something withdrawn."""
    found = set()
    with project.opened() as (_, definitions, instance):
        for key in definitions.resolve_asset_graph().asset_check_keys:
            if key.name == CHECK:
                history = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
                for record in history:
                    assert record.event is not None
                    result = record.event.asset_check_evaluation
                    assert result is not None
                    if not result.passed:
                        assert REASON in (result.description or "")
                        found.add(label(key.asset_key, result.partition))
    return found


def test_a_chosen_sample_taints_what_was_tuned_on_it_and_no_more(one: Project, mona: Any) -> None:
    theirs = set(chosen(one, "controls.random"))
    sample = chosen(one)[0]
    assert sample not in theirs  # by the seed of the control
    texts = turns(one, sample)
    records = build_resources(one.config)["records"]
    tuned_before = records.current(TUNED)
    others = {
        asset: records.current(asset)
        for asset in RANDOM
        if AssetPartition.parse(asset).kind != "selection"
    }
    # What a training that was ended leaves: samples for the trainer, a checkpoint with a log.
    scratch = one.config.home / "scratch"
    (scratch / "finetune.abc" / "checkpoint-4").mkdir(parents=True)
    (scratch / "finetune.abc" / "checkpoint-4" / "state.json").write_text(json.dumps(texts))
    (scratch / "evaluation.abc").mkdir()
    (scratch / "evaluation.abc" / "x-00000.jsonl").write_text(json.dumps({"answer": texts[0]}))
    before = search(one.root, sample, texts)
    assert {"pool", "codes", "activations", "dagster", "scratch", "evaluation"} <= set(before)

    report = mona("withdraw", "--yes", "--sample", sample, "--reason", REASON)
    expected = {SUBSET, TUNED, EVALUATED, BOARD}
    assert set(report["tainted"]) == expected
    assert search(one.root, sample, texts) == {}
    why = tainted(mona)
    assert set(why) == expected
    assert all(REASON in text for text in why.values())
    assert failed_checks(one) == expected
    answers = one.store.read(results_table("eating", "mona", "fruit", "tiny")).to_pylist()
    assert {row["answer"] for row in answers} == {BLANK, None}
    assert all(row["value"] is not None for row in answers)
    # The published model says by id what it was tuned on.
    (folder,) = (one.root / "store/finetunes/eating/mona/fruit.tiny").iterdir()
    facts = json.loads((folder / "provenance.json").read_text())
    assert sample in [row["sample_id"] for row in facts["subset"]["rows"]]
    seen = mona("lineage", "verify")
    assert seen["findings"] == []
    assert {"raw_pool[fruit]", EVALUATED} <= {row["asset"] for row in seen["withdrawn"]}

    remade = mona("run")["made"]
    assert {
        name for name in remade if AssetPartition.parse(name).kind in SHOWN
    } - RANDOM == expected
    assert tainted(mona) == {}
    assert failed_checks(one) == set()
    assert {asset: records.current(asset) for asset in others} == others
    assert set(one.status().values()) == {"fresh"}
    assert sample not in chosen(one)
    assert search(one.root, sample, texts) == {}
    # The past stays answerable: the old subset and the model that was tuned on it.
    (use,) = uses_of_sample(records, one.store, sample)
    assert not use.current
    assert use.finetunes == [f"{TUNED} {tuned_before[:16]}"]
    (shown,) = mona("lineage", "sample", sample)
    assert REASON in shown["withdrawn"]
    assert findings(one) == []


def test_a_sample_that_was_not_chosen_taints_nothing(one: Project, mona: Any) -> None:
    used = {*chosen(one), *chosen(one, "controls.random")}
    unused = sorted(set(one.store.sample_ids("pool.fruit").to_pylist()) - used)
    sample = unused[0]
    texts = turns(one, sample)
    assert mona("withdraw", "--yes", "--sample", sample, "--reason", REASON)["tainted"] == []
    assert search(one.root, sample, texts) == {}
    assert (tainted(mona), failed_checks(one)) == ({}, set())
    remade = mona("run")["made"]
    assert not {
        name for name in remade if AssetPartition.parse(name).kind in ("finetune", "evaluation")
    }
    assert findings(one) == []


def test_a_test_row_taints_what_was_measured_on_it_not_the_models(one: Project, mona: Any) -> None:
    asked = {
        row["sample_id"]
        for row in one.store.read(results_table("eating", "mona", "fruit", "tiny")).to_pylist()
    }
    row = next(row for row in rows(one, "test_rows") if row["sample_id"] in asked)
    sample, texts = row["sample_id"], contents(row)
    assert {"test_rows", "evaluation"} <= set(search(one.root, sample, texts))
    report = mona("withdraw", "--yes", "--sample", sample, "--reason", REASON)
    expected = {SUBSET, *MEASURED, BOARD, label(selection("controls", "random"), PART)}
    assert set(report["tainted"]) == expected
    assert search(one.root, sample, texts) == {}
    assert findings(one) == []
    remade = mona("run")["made"]
    assert {name for name in remade if AssetPartition.parse(name).kind in SHOWN} == expected
    assert tainted(mona) == {}
    assert search(one.root, sample, texts) == {}
    assert findings(one) == []


def test_an_example_taints_what_was_chosen_and_tuned_by_it(one: Project, mona: Any) -> None:
    row = rows(one, "examples")[0]
    sample, texts = row["sample_id"], contents(row)
    report = mona("withdraw", "--yes", "--sample", sample, "--reason", REASON)
    expected = {SUBSET, TUNED, *MEASURED, BOARD}
    assert set(report["tainted"]) == expected
    assert search(one.root, sample, texts) == {}
    remade = mona("run")["made"]
    assert expected <= set(remade)
    assert label(finetune("controls", "random"), PART) not in remade
    assert tainted(mona) == {}
    assert search(one.root, sample, texts) == {}
    assert findings(one) == []


def test_of_all_that_the_product_makes_nothing_shows_a_withdrawn_row(
    one: Project, mona: Any
) -> None:
    answers = one.store.read(results_table("eating", "mona", "fruit", "tiny"), ["sample_id"])
    asked = answers.column("sample_id").to_pylist()
    target = {
        "examples": rows(one, "examples")[0],
        "test_rows": next(row for row in rows(one, "test_rows") if row["sample_id"] in asked),
    }
    samples = {"pool": chosen(one)[0]} | {name: row["sample_id"] for name, row in target.items()}
    texts = {"pool": turns(one, samples["pool"])}
    texts |= {name: contents(row) for name, row in target.items()}
    # Every table, and the views that are not made where no recipe reads them.
    made_kinds = {name.split(".")[0] for name in one.store.table_names()}
    assert {n for n in set(KINDS) - made_kinds if "mean" not in n and "mlp" not in n} == set()
    everything(one)
    before = {table: search(one.root, samples[table], texts[table]) for table in samples}
    assert set(before["pool"]) >= {
        *("pool", "codes", "activations", "evaluation", "dagster", "scratch", "out"),
    }
    assert before["pool"]["out"] == 8  # an export a format, one half written, two packed copies
    assert set(before["examples"]) >= {"examples", "example_codes", "example_activations"}
    assert set(before["test_rows"]) >= {"test_rows", "evaluation"}
    listed = one.root / "ids.yaml"  # the search leaves out what lies beside the sources
    listed.write_text("\n".join(samples.values()))

    report = mona("withdraw", "--yes", "--file", str(listed), "--reason", REASON)
    by_hand = [line for line in report["by_hand"] if "its source still has it" not in line]
    assert by_hand == []
    # What was packed by hand after it was exported is nobody's to find.
    for packed in ("packed.gz", "packed.zip"):
        (one.root / "out" / packed).unlink()
    for table, sample in samples.items():
        assert search(one.root, sample, texts[table]) == {}, table
    assert findings(one) == []


def everything(project: Project) -> None:
    """Exports in every form, one of them cut short, cards, events, a registered model, and what
    killed work leaves."""
    out = project.root / "out"

    def call(*words: str) -> None:
        cli.cli([*words, "--config", str(project.config_path)], standalone_mode=False)

    for fmt in EXPORTS.names():
        call("export", "eating/mona", "--format", fmt, "--out", str(out / fmt))
    text = (out / "jsonl").read_text()
    (out / "packed.gz").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(out / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("subset.jsonl", text)
    ids = chosen(project)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit),
        Exports(project.config.home).writing("r", "fruit", ids, {out / "half.jsonl": "jsonl"}),
    ):
        unfinished(out / "half.jsonl").write_text(text)
        patch.setattr(Exports, "settle", lambda *_: (_ for _ in ()).throw(SystemExit()))
    call("lineage", "card", "eating/mona", "--out", str(out / "card.md"))
    call("lineage", "export", "--out", str(out / "events.jsonl"))
    (tuned,) = (project.root / "store/finetunes/eating/mona/fruit.tiny").iterdir()
    call("register", "controls/random", "--model", str(tuned))
    scratch = project.config.home / "scratch"
    (scratch / "finetune.abc" / "checkpoint-4").mkdir(parents=True)
    (scratch / "finetune.abc" / "checkpoint-4" / "state.json").write_text(text)
