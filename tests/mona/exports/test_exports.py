"""mona.exports: every format read back by `datasets`, and files that are whole or untouched."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mona.errors import RequestError, WorkError
from mona.exports import export, files_of, held, kind_by_content, without
from mona.publishing import unfinished
from mona.registry import EXPORTS
from mona.spec import FinetuneSpec, LanguageModel

Row = dict[str, Any]
FORMATS = EXPORTS.names()
LINEAGE = ("sample_id", "rank", "score", "source", "licence")


def row(sample_id: str, *turns: tuple[str, str], rank: int = 1) -> Row:
    return {
        "sample_id": sample_id,
        "messages": [{"role": role, "content": content} for role, content in turns],
        "score": 0.75 - rank / 64,
        "rank": rank,
        "source": "garden notes",
        "licence": "CC0-1.0",
        "length": 12,
    }


PLAIN = row("p1", ("user", "Which herb is this?"), ("assistant", "Thyme.\nIt smells so."))
LONG = row(
    "l1",
    ("system", "You name plants."),
    ("user", "And this “leaf”? 🌿"),
    ("assistant", "Über-sage,\u2028perhaps."),
    ("user", "Sure?"),
    ("assistant", "No."),
    rank=2,
)
TOOL = row(
    "t1",
    ("user", "How warm is the bed?"),
    ("assistant", '{"call": "thermometer"}'),
    ("tool", "14"),
    ("assistant", "Fourteen degrees."),
    rank=3,
)
QUESTION = row("q1", ("user", "Only a question"), rank=4)
TWO_USERS = row("u1", ("user", "One"), ("user", "Two"), ("assistant", "Three"), rank=5)
LATE_SYSTEM = row("y1", ("user", "One"), ("system", "Two"), ("assistant", "Three"), rank=6)
NOTHING = row("n1", rank=7)


def read_back(path: Path, tmp_path: Path) -> list[Row]:
    datasets = pytest.importorskip("datasets")
    kind = "parquet" if path.suffix == ".parquet" else "json"
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)
    return list(loaded)


def lineage(one: Row) -> Row:
    return {key: one[key] for key in LINEAGE}


@pytest.mark.parametrize("fmt", ["jsonl", "parquet"])
def test_messages_and_lineage_come_back_whole(fmt: str, tmp_path: Path) -> None:
    rows = [PLAIN, LONG, TOOL, QUESTION, TWO_USERS]
    out = tmp_path / f"subset.{fmt}"
    assert export(iter(rows), fmt, out) == [out]
    expected = [{"messages": one["messages"], **lineage(one)} for one in rows]
    assert read_back(out, tmp_path) == expected


def test_jsonl_is_one_object_a_line_whatever_the_text_holds(tmp_path: Path) -> None:
    out = tmp_path / "subset.jsonl"
    export([PLAIN, LONG], "jsonl", out)
    lines = out.read_bytes().decode("utf-8").split("\n")
    assert lines[-1] == ""
    assert [json.loads(line)["sample_id"] for line in lines[:-1]] == ["p1", "l1"]
    assert "🌿" in lines[1]


def test_parquet_has_one_schema_whatever_the_rows(tmp_path: Path) -> None:
    for name, rows in {"a": [PLAIN], "b": [{**NOTHING, "licence": None}]}.items():
        export(rows, "parquet", tmp_path / name)
    assert pq.read_schema(tmp_path / "a") == pq.read_schema(tmp_path / "b")
    many = [row(f"s{i}", ("user", str(i)), ("assistant", "yes"), rank=i + 1) for i in range(2_500)]
    export(many, "parquet", tmp_path / "many")
    assert pq.read_table(tmp_path / "many").column("rank").to_pylist() == list(range(1, 2_501))


def test_sharegpt(tmp_path: Path) -> None:
    out = tmp_path / "subset.json"
    assert export([LONG, TOOL], "sharegpt", out) == [out]
    long, tool = read_back(out, tmp_path)
    assert long["conversations"] == [
        {"from": "system", "value": "You name plants."},
        {"from": "human", "value": "And this “leaf”? 🌿"},
        {"from": "gpt", "value": "Über-sage,\u2028perhaps."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "No."},
    ]
    assert [turn["from"] for turn in tool["conversations"]] == ["human", "gpt", "tool", "gpt"]
    assert {key: tool[key] for key in LINEAGE} == lineage(TOOL)
    assert json.loads(out.read_text(encoding="utf-8"))[0]["sample_id"] == "l1"


def test_alpaca(tmp_path: Path) -> None:
    out = tmp_path / "subset.json"
    export([PLAIN, LONG], "alpaca", out)
    assert read_back(out, tmp_path) == [
        {
            "instruction": "Which herb is this?",
            "input": "",
            "output": "Thyme.\nIt smells so.",
            "system": "",
            "history": [],
            **lineage(PLAIN),
        },
        {
            "instruction": "Sure?",
            "input": "",
            "output": "No.",
            "system": "You name plants.",
            "history": [["And this “leaf”? 🌿", "Über-sage,\u2028perhaps."]],
            **lineage(LONG),
        },
    ]


def test_alpaca_loads_when_the_first_history_comes_after_many_megabytes(tmp_path: Path) -> None:
    text = "Dig. " * 400
    many = [row(f"s{i}", ("user", text), ("assistant", "Done.")) for i in range(7_000)]
    out = tmp_path / "subset.json"
    export([*many, LONG], "alpaca", out)
    assert out.stat().st_size > 12_000_000
    assert read_back(out, tmp_path)[-1]["history"] == [
        list(pair) for pair in [(LONG["messages"][1]["content"], LONG["messages"][2]["content"])]
    ]


def llamafactory_messages(
    dataset: list[Row], entry: dict[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(system, [(meaning, text)]) as LLaMA-Factory's documentation of the keys reads them."""
    assert entry["formatting"] == "sharegpt"
    tags = entry["tags"]
    meaning = {
        tags["user_tag"]: "asks",
        tags["observation_tag"]: "observes",
        tags["assistant_tag"]: "answers",
    }
    conversations = []
    for one in dataset:
        turns = one[entry["columns"]["messages"]]
        system = ""
        if turns[0][tags["role_tag"]] == tags["system_tag"]:
            system, turns = turns[0][tags["content_tag"]], turns[1:]
        read = [(meaning[turn[tags["role_tag"]]], turn[tags["content_tag"]]) for turn in turns]
        for place, (what, _) in enumerate(read):
            assert what in (("answers",) if place % 2 else ("asks", "observes"))
        conversations.append((system, read))
    return conversations


def test_llamafactory(tmp_path: Path) -> None:
    out = tmp_path / "herbs"
    data, info = export([LONG, TOOL], "llamafactory", out)
    assert (data, info) == (out / "herbs.json", out / "dataset_info.json")
    entries = json.loads(info.read_text(encoding="utf-8"))
    assert list(entries) == ["herbs"]
    assert entries["herbs"]["file_name"] == "herbs.json"
    long, tool = llamafactory_messages(read_back(data, tmp_path), entries["herbs"])
    assert long[0] == "You name plants."
    assert [text for _, text in long[1]] == [m["content"] for m in LONG["messages"][1:]]
    assert [what for what, _ in tool[1]] == ["asks", "answers", "observes", "answers"]


def test_llamafactory_uses_only_keys_of_its_own_demo() -> None:
    demo = Path(__file__).parents[4] / "shared/data/pools/llamafactory_demo/dataset_info.json"
    if not demo.exists():
        pytest.skip("needs ../shared/data/pools/llamafactory_demo")
    from mona.exports.llamafactory import _entry

    known = json.loads(demo.read_text(encoding="utf-8")).values()
    entry = _entry("herbs.json")
    assert set(entry) <= {key for one in known for key in one}
    for part in ("columns", "tags"):
        documented = {key for one in known for key in one.get(part, {})}
        # The demo has no tool turns in this form; these two are in its documentation alone.
        assert set(entry[part]) - {"observation_tag", "system_tag"} <= documented


def test_llamafactory_gets_the_same_hyperparameters(tmp_path: Path) -> None:
    spec = FinetuneSpec(
        base=LanguageModel(repo="own/model"), learning_rate=3e-5, batch_size=32, epochs=1.5
    )
    *_, settings = export([PLAIN], "llamafactory", tmp_path, training=spec)
    assert settings.name == f"{tmp_path.name}.yaml"
    said = yaml.safe_load(settings.read_text(encoding="utf-8"))
    assert (said["stage"], said["finetuning_type"], said["lora_rank"]) == ("sft", "lora", 16)
    assert said["model_name_or_path"] == "own/model"
    batch = said["per_device_train_batch_size"] * said["gradient_accumulation_steps"]
    assert (batch, said["learning_rate"], said["num_train_epochs"]) == (32, 3e-5, 1.5)
    assert said["dataset"] in json.loads((tmp_path / "dataset_info.json").read_text())
    full = FinetuneSpec(lora=None, dtype="float32")
    *_, settings = export([PLAIN], "llamafactory", tmp_path, training=full, force=True)
    said = yaml.safe_load(settings.read_text(encoding="utf-8"))
    assert said["finetuning_type"] == "full"
    assert not said["bf16"]
    assert "lora_rank" not in said


def test_llamafactory_keeps_the_entries_of_others(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"mine": {"file_name": "mine.json"}}', encoding="utf-8")
    export([PLAIN], "llamafactory", tmp_path)
    entries = json.loads(info.read_text(encoding="utf-8"))
    assert entries["mine"] == {"file_name": "mine.json"}
    assert set(entries) == {"mine", tmp_path.name}
    (tmp_path / f"{tmp_path.name}.json").unlink()
    with pytest.raises(RequestError, match=f"has an entry '{tmp_path.name}'"):
        export([PLAIN], "llamafactory", tmp_path)
    info.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(RequestError, match=r"dataset_info\.json: is not JSON"):
        export([PLAIN], "llamafactory", tmp_path, force=True)
    assert info.read_text(encoding="utf-8") == "[1, 2"


@pytest.mark.parametrize(
    ("fmt", "bad", "message"),
    [
        ("alpaca", TOOL, "sample t1: alpaca cannot hold its tool turn"),
        ("alpaca", QUESTION, "sample q1: alpaca cannot hold .* does not end with an assistant"),
        ("alpaca", LATE_SYSTEM, "sample y1: alpaca cannot hold its system turn"),
        ("alpaca", NOTHING, "sample n1: alpaca"),
        ("llamafactory", QUESTION, "sample q1: llamafactory"),
        ("llamafactory", LATE_SYSTEM, "sample y1: llamafactory"),
        ("llamafactory", NOTHING, "sample n1: llamafactory"),
    ],
)
def test_a_shape_the_format_cannot_hold_names_the_sample_and_leaves_nothing(
    fmt: str, bad: Row, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    out = folder if fmt == "llamafactory" else folder / "subset.json"
    with pytest.raises(RequestError, match=message):
        export([PLAIN, bad], fmt, out)
    assert [path.name for path in folder.iterdir()] == []


@pytest.mark.parametrize("fmt", ["alpaca", "llamafactory"])
def test_neighbours_of_one_role_become_one_turn(fmt: str, tmp_path: Path) -> None:
    out, data = target(fmt, tmp_path)
    twice = row("s1", ("system", "A"), ("system", "B"), ("user", "One"), ("assistant", "Two"))
    export([TWO_USERS, twice], fmt, out)
    first, second = json.loads(data.read_text(encoding="utf-8"))
    if fmt == "alpaca":
        assert (first["instruction"], first["output"]) == ("One\n\nTwo", "Three")
        assert second["system"] == "A\n\nB"
    else:
        assert [turn["content"] for turn in first["messages"]] == ["One\n\nTwo", "Three"]
        assert second["messages"][0] == {"role": "system", "content": "A\n\nB"}


@pytest.mark.parametrize("fmt", ["alpaca", "llamafactory"])
def test_unfit_samples_can_be_left_out_and_are_named(fmt: str, tmp_path: Path) -> None:
    out, data = target(fmt, tmp_path)
    reasons: list[str] = []
    export([LATE_SYSTEM, PLAIN, QUESTION], fmt, out, left_out=reasons.append)
    (kept,) = json.loads(data.read_text(encoding="utf-8"))
    assert kept["sample_id"] == "p1"
    assert [reason.split(":")[0] for reason in reasons] == ["sample y1", "sample q1"]
    with pytest.raises(RequestError, match="none of the samples"):
        export([QUESTION], fmt, out, force=True, left_out=reasons.append)
    assert json.loads(data.read_text(encoding="utf-8")) == [kept]


def target(fmt: str, tmp_path: Path) -> tuple[Path, Path]:
    """(what to give as `out`, the data file that comes of it)."""
    out = tmp_path / "subset"
    return out, next(iter(files_of(fmt, out)))


@pytest.mark.parametrize("fmt", FORMATS)
def test_nothing_is_overwritten_unless_forced(fmt: str, tmp_path: Path) -> None:
    out, data = target(fmt, tmp_path)
    export([PLAIN], fmt, out)
    before = data.read_bytes()
    with pytest.raises(RequestError, match="exists"):
        export([LONG], fmt, out)
    assert data.read_bytes() == before
    export([LONG], fmt, out, force=True)
    assert data.read_bytes() != before


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_failure_half_way_leaves_what_was_there(fmt: str, tmp_path: Path) -> None:
    out, _ = target(fmt, tmp_path)
    export([PLAIN], fmt, out)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def breaks() -> Iterator[Row]:
        for _ in range(3_000):
            yield LONG
        raise OSError("the pool went away")

    with pytest.raises(OSError, match="the pool went away"):
        export(breaks(), fmt, out, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_rows_are_refused_before_anything_is_written(fmt: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no rows"):
        export([], fmt, tmp_path / "subset")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_are_taken_one_by_one(fmt: str, tmp_path: Path) -> None:
    """While 5,000 rows go out no more than a batch of them is alive."""
    alive = most = 0

    class Counted(dict[str, Any]):
        def __init__(self, values: Row) -> None:
            nonlocal alive, most
            super().__init__(values)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    export((Counted(PLAIN) for _ in range(5_000)), fmt, tmp_path / "subset")
    assert most <= 1_010


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: export([PLAIN], "csv", tmp_path / "a"), "'csv' is no export format"),  # type: ignore[arg-type]
        (lambda: export([PLAIN], "jsonl", tmp_path, force=True), "is a folder"),
        (lambda: export([PLAIN], "llamafactory", tmp_path / "file", force=True), "is a file"),
        (lambda: export([PLAIN], "jsonl", tmp_path / "file" / "x"), "cannot be written"),
    ]
    for request, message in cases:
        with pytest.raises(RequestError, match=message):
            request()


def test_an_export_is_readable_like_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    export([PLAIN], "jsonl", tmp_path / "subset")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "subset")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("fmt", FORMATS)
def test_samples_are_taken_out_of_a_written_export(fmt: str, tmp_path: Path) -> None:
    whole, expected = tmp_path / "whole" / "out", tmp_path / "expected" / "out"
    assert export([PLAIN, LONG], fmt, whole) == list(files_of(fmt, whole))
    files = files_of(fmt, whole)
    assert [held(*file, {"l1", "x"}) for file in files.items()] == [1, 0][: len(files)]
    assert [without(*file, {"l1", "x"}) for file in files.items()] == [1, 0][: len(files)]
    wanted = export([PLAIN], fmt, expected)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in wanted]
    assert [without(*file, {"p1"}) for file in files.items()] == [1, 0][: len(files)]
    assert [held(*file, {"p1", "l1"}) for file in files.items()] == [0, 0][: len(files)]


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_a_file_is_can_be_told_from_how_it_begins(fmt: str, tmp_path: Path) -> None:
    spec = FinetuneSpec() if fmt == "llamafactory" else None
    export([PLAIN, LONG], fmt, tmp_path / "out", training=spec)
    files = files_of(fmt, tmp_path / "out", spec)
    assert {file: kind_by_content(file) for file in files} == files


@pytest.mark.parametrize(
    "text", ["not json", '{"messages": []}\n', '[{"sample_id": 1}', "[1, 2]", "\udcff", "PAR1"]
)
@pytest.mark.parametrize("kind", ["jsonl", "array", "parquet"])
def test_what_is_no_export_any_more_is_said(text: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "subset"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    for call in (held, without):
        with pytest.raises(WorkError, match=f"{file}: (can't be read as|has rows without)"):
            call(file, kind, {"l1"})  # type: ignore[arg-type]
    assert file.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_what_a_kill_leaves_lies_where_it_is_sought(tmp_path: Path) -> None:
    for out in (tmp_path / "subset.jsonl", tmp_path / ("n" * 255)):
        seen = []

        def rows(out: Path = out, seen: list[bool] = seen) -> Iterator[dict[str, Any]]:
            yield PLAIN
            seen.append(unfinished(out).exists())

        export(rows(), "jsonl", out)
        assert seen == [True]
        assert not unfinished(out).exists()


@pytest.mark.parametrize("fmt", FORMATS)
def test_system_turns_can_be_written_into_the_question(fmt: str, tmp_path: Path) -> None:
    (first, *_) = export([LONG, PLAIN], fmt, tmp_path / "kept")
    (second, *_) = export([LONG, PLAIN], fmt, tmp_path / "folded", system="fold")
    by_hand = row(
        "l1", ("user", "You name plants.\n\nAnd this “leaf”? 🌿"), *_turns(LONG)[2:], rank=2
    )
    (third, *_) = export([by_hand, PLAIN], fmt, tmp_path / "by_hand")
    assert second.read_bytes() == third.read_bytes() != first.read_bytes()


def _turns(one: Row) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in one["messages"]]
