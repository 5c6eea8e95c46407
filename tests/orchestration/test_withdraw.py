"""Withdrawal: a search that finds a sample everywhere before finds it nowhere afterwards."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from assets.keys import label, selection
from mona.errors import RequestError, WorkError
from mona.sample import from_records
from orchestration import cli, scrub, withdrawal, withdrawal_tables
from orchestration.definitions import build_resources
from orchestration.home import open_instance
from orchestration.lineage import uses_of_origin, uses_of_sample
from orchestration.taints import CHECK, readable, standing_on, taints
from orchestration.verify import read_audit, withdrawn
from resources.records import Record, Records
from resources.withdrawals import Withdrawals
from tests.orchestration.conftest import Project, findings, small_project, sums, verses
from tests.orchestration.searching import search
from tests.orchestration.test_crash import PRELOAD

SUBSET = label(selection("adding", "mona"), "fruit|tiny")
CONTROL = label(selection("controls", "random"), "fruit|tiny")
TABLE = "selection.adding.mona.fruit.tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, made_once: Path) -> Project:
    """One dataset of two sources, run twice: two selections pin two versions of the tables."""
    project = small_project(tmp_path_factory.mktemp("made"), tiny_llama, made_once)
    project.settings["datasets"].pop("verse")
    project.settings["datasets"]["fruit"]["sources"].append(
        {"name": "second", "path": "second.jsonl", "licence": "MIT"}
    )
    project.settings["recipes"]["random"] = {"selector": "random", "budget": {"count": 10}}
    project.write_rows("second", sums(20, 50))  # 40 of them are in the first source too
    project.first_run()
    project.write_rows("fruit", [*project.rows("fruit"), *sums(200, 4)])
    project.run()
    return project


@pytest.fixture
def one(made: Project, tmp_path: Path) -> Project:
    return made.copied_to(tmp_path)


@pytest.fixture
def mona(one: Project, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> str:
        one.write()
        capsys.readouterr()
        cli.cli([*words, "--config", str(one.config_path)], standalone_mode=False)
        return capsys.readouterr().out

    return call


def records_of(project: Project) -> Any:
    return build_resources(project.config)["records"]


def chosen(project: Project, rank: int = 1) -> str:
    rows = project.store.read(TABLE, ["sample_id"], where=f"rank = {rank}")
    return str(rows.column("sample_id")[0].as_py())


def in_both(project: Project) -> list[str]:
    """The samples of the current subset that the one before held too, best first."""
    records = records_of(project)
    ranks: dict[str, list[int]] = {}
    for digest in records.digests():
        if records.get(digest).asset == SUBSET:
            version = records.get(digest).tables[TABLE].version
            for row in project.store.read(
                TABLE, ["sample_id", "rank"], version=version
            ).to_pylist():
                ranks.setdefault(row["sample_id"], []).append(row["rank"])
    now = {chosen(project, rank): rank for rank in range(1, 11)}
    return sorted((key for key in now if len(ranks[key]) == 2), key=lambda key: now[key])


def turns(project: Project, sample: str) -> list[str]:
    rows = project.store.rows("pool.fruit", ["messages"], [sample]).column("messages").to_pylist()
    return [message.content for message in from_records(rows[0])]


def test_a_sample_is_found_everywhere_before_and_nowhere_after(
    one: Project, mona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, bystander = in_both(one)[:2]
    texts = turns(one, sample)
    bystander_text = turns(one, bystander)[0]
    for fmt in ("jsonl", "sharegpt", "alpaca", "llamafactory", "parquet"):
        mona("export", "adding/mona", "--format", fmt, "--out", str(one.root / "out" / fmt))
    edited = one.root / "out" / "edited.jsonl"
    mona("export", "adding/mona", "--format", "jsonl", "--out", str(edited))
    edited.write_text(edited.read_text().replace("basket", "barrel"))
    # What a killed pool step, a killed fine-tune and a captured log leave behind.
    home = one.config.home
    (home / "scratch" / "tuned").mkdir(parents=True)
    (home / "scratch" / "tuned" / "abc.jsonl").write_text(json.dumps({"messages": texts}))
    packed = zstandard.ZstdCompressor().compress(" ".join(texts).encode())
    (home / "scratch" / "tuned" / "abc.jsonl.zst").write_bytes(packed)
    pq.write_table(pa.table({"messages": [texts]}), home / "scratch" / "rows.parquet")
    log = home / "dagster" / "storage" / "run" / "compute_logs" / "step.err"
    log.parent.mkdir(parents=True)
    log.write_text(f"reading\n{sample}: {texts[0]}\ndone\n")

    before = search(one.root, sample, texts)
    assert before["pool"] >= 2
    assert {"activations", "codes", "dagster", "scratch", "out"} <= set(before)
    assert findings(one) == []
    made = records_of(one).current(SUBSET)
    digests = records_of(one).digests()
    uses = uses_of_sample(records_of(one), one.store, sample)

    read = Counter[str]()
    with monkeypatch.context() as counting:
        body = Records.body
        counting.setattr(Records, "body", lambda of, key: (read.update([key]), body(of, key))[1])
        report = json.loads(
            mona(
                *("withdraw", "--yes", "--sample", sample),
                *("--reason", "asked by its author", "--json"),
            )
        )
    assert read == Counter(digests)  # each record once
    assert len(report["exports"]) == 5
    assert set(report["exports"].values()) == {1}
    assert [line for line in report["by_hand"] if "edited.jsonl" in line]
    assert [line for line in report["by_hand"] if "its source still has it" in line]
    assert report["tables"]["pool.fruit"] == 2
    edited.unlink()
    assert search(one.root, sample, texts) == {}
    assert log.read_text() == "[withdrawn]\n"
    # Others are as they were, in the history too, which Dagster still reads.
    assert search(one.root, bystander, [bystander_text])["dagster"] >= 1
    for fmt in ("jsonl", "sharegpt", "alpaca"):
        assert bystander in (one.root / "out" / fmt).read_text()
    with open_instance(one.config) as instance:
        events = instance.fetch_materializations(dg.AssetKey(["adding", "mona", "selection"]), 9)
        for event in events.records:
            assert event.asset_materialization is not None
            top = event.asset_materialization.metadata["top 20"].records
            assert {r.data["sample_id"]: r.data["prompt"] for r in top}[sample] == "[withdrawn]"

    # Lineage answers by id, and the audit says withdrawn, not corrupt.
    assert uses_of_sample(records_of(one), one.store, sample) == uses
    assert "asked by its author" in mona("lineage", "sample", sample)
    assert findings(one) == []
    assert records_of(one).digests() == digests
    seen = json.loads(mona("lineage", "verify", "--json"))
    assert seen["findings"] == []
    assert {"raw_pool[fruit]", "sae_codes[fruit|tiny]"} <= {w["asset"] for w in seen["withdrawn"]}
    assert all("asked by its author" in w["withdrawn"] for w in seen["withdrawn"])
    (data, *_) = (home / "tables" / "pool.fruit.lance" / "data").glob("*.lance")
    whole = data.read_bytes()
    data.write_bytes(whole[:40] + bytes([whole[40] ^ 0x10]) + whole[41:])
    assert any(data.name in finding.what for finding in findings(one))
    data.write_bytes(whole)

    # Tainted until made again, by the next run, which does not bring the row back.
    status = {row["asset"]: row for row in json.loads(mona("status", "--json"))}
    assert status[SUBSET]["status"] == "tainted"
    assert "asked by its author" in status[SUBSET]["why"]
    assert "(withdrawn)" in mona("select", "show", "adding/mona")
    assert last_check(one).description == taints(records_of(one))[SUBSET]
    one.run()
    assert set(one.status().values()) == {"fresh"}
    assert taints(records_of(one)) == {}
    assert last_check(one).passed
    assert made != records_of(one).current(SUBSET)
    assert search(one.root, sample, texts) == {}
    assert search(one.root, bystander, [bystander_text])["pool"] >= 2
    one.write_rows("fruit", [*one.rows("fruit"), *verses(400, 2)])
    one.run(upto="raw_pool")
    assert any(
        texts[0].startswith(row["instruction"]) for row in [*one.rows("fruit"), *one.rows("second")]
    )
    assert search(one.root, sample, texts) == {}
    assert findings(one) == []


def last_check(project: Project) -> dg.AssetCheckEvaluation:
    with open_instance(project.config) as instance:
        key = dg.AssetCheckKey(dg.AssetKey(["adding", "mona", "selection"]), CHECK)
        (newest,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert newest.event is not None
        found = newest.event.asset_check_evaluation
        assert found is not None
        assert found.partition == "fruit|tiny"
        return found


def test_a_withdrawn_source_drops_its_pair_and_rows_without_another(
    one: Project, mona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[dict[str, Any]] = []
    monkeypatch.setattr(withdrawal, "post", lambda _, notice: notices.append(notice))

    def pairs() -> dict[str, list[str]]:
        rows = one.store.read("pool.fruit", ["sample_id", "origins"]).to_pylist()
        return {r["sample_id"]: [o["source"] for o in r["origins"]] for r in rows}

    before = pairs()
    both = {key for key, sources in before.items() if sources == ["fruit", "second"]}
    alone = {key for key, sources in before.items() if sources == ["second"]}
    assert (len(both), len(alone)) == (40, 10)
    texts = turns(one, min(alone))
    with pytest.raises(RequestError, match="no pool ever had a source called 'elsewhere'"):
        mona("withdraw", "--yes", "--source", "elsewhere", "--reason", "licence")
    mona("withdraw", "--yes", "--source", "second", "--reason", "its licence changed")
    assert search(one.root, min(alone), texts) == {}
    (notice,) = notices
    assert (notice["event"], notice["samples"]) == ("withdrawn", 10)
    assert notice["tainted"] == sorted(taints(records_of(one)))
    (one.root / "second.jsonl").unlink()  # its files may go: they are not read again
    one.run()
    after = pairs()
    assert after.keys() == before.keys() - alone
    assert {tuple(sources) for sources in after.values()} == {("fruit",)}
    assert findings(one) == []
    assert set(one.status().values()) == {"fresh"}


def test_the_taint_reaches_past_subsets_and_the_models_tuned_on_them(one: Project) -> None:
    records, sample = records_of(one), in_both(one)[0]
    subsets = [d for d in records.digests() if records.get(d).asset == SUBSET]
    for number, digest in enumerate(subsets):
        tuned = Record(
            f"adding/mona{number}/finetune[fruit|tiny]", "weights", inputs={SUBSET: digest}
        )
        above = {tuned.asset: records.publish(tuned)}
        records.publish(Record(f"adding/mona{number}/evaluation[fruit|tiny]", "m", inputs=above))
    found = standing_on(readable(records), one.store, {"fruit": [sample]}, {})
    assert {digest for digest, asset in found.items() if asset == SUBSET} == set(subsets)
    assert {asset for asset in found.values() if "mona0" in asset or "mona1" in asset} == {
        f"adding/mona{number}/{kind}[fruit|tiny]"
        for number in (0, 1)
        for kind in ("finetune", "evaluation")
    }
    unused = (
        set(one.store.sample_ids("pool.fruit").to_pylist())
        - {use.sample_id for use in uses_of_origin(records, one.store, "licence", "CC0-1.0")}
        - {use.sample_id for use in uses_of_origin(records, one.store, "licence", "MIT")}
    )
    assert standing_on(readable(records), one.store, {"fruit": [min(unused)]}, {}) == {}


def test_an_unknown_id_is_refused_and_nothing_changes(one: Project, mona: Any) -> None:
    known = one.store.sample_ids("pool.fruit")[0].as_py()
    listed = one.root / "list.txt"
    listed.write_text(f"{known}\n{'0' * 32}\n")
    version = one.store.version("pool.fruit")
    with pytest.raises(RequestError, match=f"never in a pool: {'0' * 32}; nothing was changed"):
        mona("withdraw", "--yes", "--file", str(listed), "--reason", "asked")
    assert Withdrawals(one.config.home).all() == []
    assert one.store.version("pool.fruit") == version
    assert known in one.store.sample_ids("pool.fruit").to_pylist()
    with pytest.raises(RequestError, match="one of --sample, --source and --file"):
        mona("withdraw", "--reason", "asked")


def test_a_withdrawal_cut_short_is_completed(
    one: Project, mona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = chosen(one), chosen(one, 2)
    texts = {sample: turns(one, sample) for sample in (first, second)}
    whole = withdrawal_tables.remove_rest

    for stage in ("scrub", "rewrite", "remove_rest"):

        def die(*_: Any) -> None:
            raise WorkError("the power failed")

        with monkeypatch.context() as patch:
            patch.setattr(withdrawal if stage == "scrub" else withdrawal_tables, stage, die)
            with pytest.raises(WorkError, match="the power failed"):
                mona("withdraw", "--yes", "--sample", first, "--reason", "asked")
        assert "pool" in search(one.root, first, texts[first])
        assert len(Withdrawals(one.config.home).pending()) == 1
    mona("withdraw", "--yes", "--sample", first, "--reason", "asked")
    assert Withdrawals(one.config.home).pending() == []
    assert search(one.root, first, texts[first]) == {}
    assert findings(one) == []

    # After a death at the last table, the next run completes it too.
    def die_late(store: Any, name: str, moved: Any) -> None:
        if name.startswith("pool."):
            raise WorkError("the power failed")
        whole(store, name, moved)

    with monkeypatch.context() as patch:
        patch.setattr(withdrawal_tables, "remove_rest", die_late)
        with pytest.raises(WorkError, match="the power failed"):
            mona("withdraw", "--yes", "--sample", second, "--reason", "asked")
    assert "pool" in search(one.root, second, texts[second])
    one.run()
    for sample, text in texts.items():
        assert search(one.root, sample, text) == {}
    assert Withdrawals(one.config.home).pending() == []
    assert findings(one) == []
    assert {w.asset for w in withdrawn(read_audit(records_of(one)))} >= {"raw_pool[fruit]"}


def test_a_reader_that_keeps_old_pages_is_waited_for(
    one: Project, mona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "_WAIT_SECONDS", 0.2)
    sample = chosen(one)
    texts = turns(one, sample)
    path = one.config.home / "dagster" / "history" / "runs" / "index.db"
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM event_logs").fetchone()
    with pytest.raises(WorkError, match="index.db: .*stop what uses Dagster's history"):
        mona("withdraw", "--yes", "--sample", sample, "--reason", "asked")
    assert len(Withdrawals(one.config.home).unfinished()) == 1
    reader.execute("COMMIT")
    # A connection at rest, as those of Dagster's UI, is no hindrance.
    mona("withdraw", "--yes", "--sample", sample, "--reason", "asked")
    assert search(one.root, sample, texts) == {}
    reader.close()
    assert search(one.root, sample, texts) == {}


Place = Literal["history", "records", "tables"]


def withdraw_and_die(config: str, sample: str, place: Place) -> None:
    """`mona withdraw`, killed when Dagster's first database is written but its free pages are
    not yet cleared, between two records of the first table, or with the last table rewritten
    and its old versions still there."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "history":
        connect = sqlite3.connect

        class Dying(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if sql == "VACUUM" and self.total_changes:
                    die()
                return super().execute(sql, *rest)

        scrub.sqlite3.connect = lambda path, **kw: connect(path, factory=Dying, **kw)
    elif place == "records":
        amend = Records.amend

        def once(self: Records, *given: Any, **rest: Any) -> None:
            amend(self, *given, **rest)
            die()

        Records.amend = once
    else:
        rest = withdrawal_tables.remove_rest
        withdrawal_tables.remove_rest = lambda store, name, moved: (
            die() if name == "pool.fruit" else rest(store, name, moved)
        )
    sys.argv = [
        "mona",
        "withdraw",
        "--yes",
        "--sample",
        sample,
        "--reason",
        "asked",
        "--config",
        config,
    ]
    cli.main()


def test_a_killed_withdrawal_is_said_and_completed(one: Project, mona: Any, capsys: Any) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([*PRELOAD, "tests.orchestration.test_withdraw"])
    ledger = Withdrawals(one.config.home)
    places: list[tuple[Place, str]] = [
        ("history", "withdraw"),
        ("records", "run"),
        ("tables", "withdraw"),
    ]
    samples = [chosen(one, rank) for rank in (1, 2, 3)]
    gone = {}
    for (place, then), sample in zip(places, samples, strict=True):
        gone[sample] = turns(one, sample)
        given = (str(one.config_path), sample, place)
        child = server.Process(target=withdraw_and_die, args=given)
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, place
        (name,) = ledger.unfinished()
        assert search(one.root, sample, gone[sample]), place
        cli.cli(["status", "--config", str(one.config_path)], standalone_mode=False)
        said = capsys.readouterr()
        assert f"withdrawal {name} is not complete: mona run completes it" in said.err
        assert "tainted" in said.out
        # Nothing is made of what is half gone, by Dagster's daemon either.
        with pytest.raises(WorkError, match=f"withdrawal {name} is at work or was cut short"):
            mona("export", "adding/mona", "--format", "jsonl", "--out", str(one.root / "late"))
        if then == "run":
            one.run()
            assert set(one.status().values()) == {"fresh"}
        else:
            mona("withdraw", "--yes", "--sample", sample, "--reason", "asked")
        assert ledger.unfinished() == []
        for key, texts in gone.items():
            assert search(one.root, key, texts) == {}, place
        assert findings(one) == []


def test_an_example_of_the_target_can_be_withdrawn(one: Project, mona: Any) -> None:
    rows = one.store.read("examples.adding", ["sample_id", "messages"]).to_pylist()
    sample, texts = rows[0]["sample_id"], [m["content"] for m in rows[0]["messages"]]
    assert {"examples", "example_codes", "example_activations", "dagster"} <= set(
        search(one.root, sample, texts)
    )
    mona("withdraw", "--yes", "--sample", sample, "--reason", "asked")
    assert search(one.root, sample, texts) == {}
    assert SUBSET in taints(records_of(one))
    one.run()
    assert search(one.root, sample, texts) == {}
    assert taints(records_of(one)) == {}
    assert one.store.count("examples.adding") == len(rows) - 1
    assert findings(one) == []


def test_a_sample_of_a_dataset_that_was_removed_can_be_withdrawn(one: Project, mona: Any) -> None:
    sample = chosen(one)
    texts = turns(one, sample)
    one.settings["datasets"]["other"] = one.settings["datasets"].pop("fruit")
    one.settings["models"]["tiny"]["sae"]["train"]["datasets"] = ["other"]
    mona("withdraw", "--yes", "--sample", sample, "--reason", "asked")
    assert search(one.root, sample, texts) == {}
    assert SUBSET in taints(records_of(one))


def test_no_withdrawal_while_another_run_is_at_work(one: Project, mona: Any) -> None:
    sample = one.store.sample_ids("pool.fruit")[0].as_py()
    from filelock import FileLock

    with (
        FileLock(one.config.home / "locks" / "pool.fruit.lock"),
        pytest.raises(WorkError, match="pool.fruit: another run is working on it"),
    ):
        mona("withdraw", "--yes", "--sample", sample, "--reason", "asked")
    assert Withdrawals(one.config.home).all() == []
