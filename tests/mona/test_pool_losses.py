"""What a pool says of rows it lost, and the losses that refuse it."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mona.errors import WorkError
from mona.files import DataFile
from mona.pool import (
    NamedRows,
    account,
    build_pool,
    head_faults,
)
from mona.sample import from_records, sample_id
from mona.spec import Subsample
from tests.mona.pools import build, data_files, hub, lines, row, source

GOOD = [{"prompt": f"Say {n}.", "completion": str(n)} for n in range(500)]
LOST = [{"prompt": f"Name {n * 7919 % 10007}.", "completion": f"It is {n}."} for n in range(6_000)]


def as_csv(rows: Sequence[dict[str, str]]) -> str:
    return "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows)


def parquet(rows: Sequence[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=1_000)
    return buffer.getvalue()


def swallowing(rows: Sequence[dict[str, str]]) -> bytes:
    """A CSV file in which a stray quotation mark opens a cell a quarter of the way, and another
    closes it near the end."""
    text = as_csv(rows).splitlines(keepends=True)
    text[1_500] = text[1_500].replace(",", ',"', 1)
    text[5_990] = text[5_990].replace("\n", '"\n')
    return "".join(text).encode()


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :]


LOSSES: dict[str, tuple[str, bytes]] = {
    "pointer": (
        "b.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 612345\n",
    ),
    "page": ("b.jsonl", b"<!doctype html><title>Sign in</title>\n" * 3),
    "gz": ("b.jsonl.gz", gzip.compress(lines(*LOST).encode())[:9_000]),
    "zst": ("b.jsonl.zst", zstandard.compress(lines(*LOST).encode())[:9_000]),
    "parquet": ("b.parquet", damaged(parquet(LOST))),
    "cut parquet": ("b.parquet", parquet(LOST)[:40_000]),
    "one line": ("b.jsonl", json.dumps(LOST).encode() + b"\n"),
    "one line, joined": ("b.jsonl", lines(*LOST).replace("\n", " ").encode() + b"\n"),
    "stray mark": ("b.csv", swallowing(LOST)),
    "cut": ("b.jsonl", lines(*LOST).encode()[:2_970]),
    "cut array": ("b.json", json.dumps(LOST, indent=1).encode()[:99_999]),
    "object": ("b.json", json.dumps({"data": LOST}).encode()[:-99]),
    "hole": (
        "b.jsonl",
        lines(*LOST[:900]).encode() + bytes(90_000) + lines(*LOST[3_000:]).encode(),
    ),
    "other names": ("b.csv", as_csv(LOST).replace("prompt", "Prompt", 1).encode()),
    "empty": ("b.jsonl", b""),
    "no header": ("b.csv", as_csv(LOST).encode().split(b"\n", 1)[1]),
    "line ends": ("b.jsonl", lines(*LOST).replace("\n", "\r").encode()),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_lost_file_beside_good_rows_refuses_the_pool(tmp_path: Path, what: str) -> None:
    name, content = LOSSES[what]
    (tmp_path / name).write_bytes(content)
    files = [*data_files(tmp_path, a=lines(*GOOD)), DataFile(tmp_path / name)]
    with pytest.raises(WorkError, match=rf"^source 's': {name}:?\d*: ") as failure:
        build(source("s", *files), max_bad_rows=1.0)
    assert str(failure.value).count("\n") == 0
    assert "allow_partial: true" in str(failure.value)
    result, _ = build(source("s", *files, allow_partial=True), max_bad_rows=1.0)
    assert result.samples >= 500
    assert result.rows_bad >= 1
    assert result.rows_read == result.samples + result.rows_bad + result.duplicates_merged
    with tempfile.TemporaryDirectory() as staging:
        seen = build_pool([source("s", *files)], Path(staging), max_bad_rows=1.0, refuse=False)
    assert len(seen.faults) == 1
    assert name in seen.faults[0]


def test_rows_that_one_fault_may_have_been_count_as_so_many(tmp_path: Path) -> None:
    files = data_files(tmp_path, a=lines(*GOOD) + json.dumps(LOST[:50]) + "\n")
    with pytest.raises(WorkError, match=r"50 of 550 rows are bad \(9\.09%, allowed 5\.00%\)"):
        build(source("s", *files), max_bad_rows=0.05)
    assert build(source("s", *files), max_bad_rows=0.1)[0].rows_bad == 50


def test_a_pool_says_what_became_of_its_rows(tmp_path: Path) -> None:
    files = data_files(
        tmp_path,
        a=lines({**row(1), "note": "x"}, {**row(1), "note": " "}, {**row(2), "note": "y", "b": "c"})
        + lines({"x": 1}, {"y": [1]}, {"instruction": "a", "output": ""})
        + "{\n",
    )
    result, _ = build(source("s", *files), max_bad_rows=0.8, subsample=Subsample(rows=1))
    assert result.unread == {"s": {"b": 1, "note": 2}}
    assert result.reasons == {
        "no known format has the fields ...": 2,
        "an empty assistant turn": 1,
        "invalid JSON: Expecting property name enclosed in double quotes": 1,
    }
    assert account("d", {**result.accounts(), "files passed over": 2}) == (
        "d: 1 samples of 7 rows; 4 set aside (2 no known format has the fields ...; "
        "1 an empty assistant turn; "
        "1 invalid JSON: Expecting property name enclosed in double quotes), 1 merged, "
        "1 not drawn, 2 files passed over, nothing reads b, note"
    )
    plain, _ = build(source("s", hub("h", [1, 2])))
    assert account("d", plain.accounts()) == "d: 2 samples of 2 rows"


def test_a_turn_that_is_not_to_be_learned_keeps_its_mark_in_the_pool(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    chat = {"messages": [user, {**answer, "weight": 0}, user, answer]}
    _, (kept,) = build(source("s", NamedRows("h", [chat])))
    assert [turn["learn"] for turn in kept["messages"]] == [None, False, None, None]
    assert sample_id(from_records(kept["messages"])) == kept["sample_id"]
    # A table of an older version has no such column.
    old = [{"role": turn["role"], "content": turn["content"]} for turn in kept["messages"]]
    assert all(turn.learn for turn in from_records(old))


def test_the_heads_of_files_tell_what_will_be_refused(tmp_path: Path) -> None:
    files = data_files(
        tmp_path,
        good=lines(row(1)),
        late=lines(*[{"x": 1}] * 30, row(1)),
        names=lines(*[{"Frage": "a", "Antwort": "b"}] * 3),
        pointer="version https://git-lfs.github.com/spec/v1\n",
        void="",
    )
    # Later rows of `late` may be good: only `good` says that the source is read right.
    names, pointer, void = head_faults(source("s", *files))
    assert names == (
        "names.jsonl:1: no known format has the fields ['Antwort', 'Frage']; "
        "a source's 'columns: {prompt: ..., answer: ...}' names its own fields"
    )
    assert pointer.startswith("pointer.jsonl:1: the file is a Git LFS pointer")
    assert void == "void.jsonl: empty file"
    assert head_faults(source("s", *files, allow_partial=True)) == []
    (late,) = head_faults(source("s", files[1]))
    assert late == (
        "late.jsonl:1: no known format has the fields ['x']; a source's 'columns: {prompt: ..., "
        "answer: ...}' names its own fields (none of the first 20 rows can be used)"
    )
    assert len(head_faults(source("s", *files[2:], allow_partial=True))) == 1
    columns = {"prompt": "Frage", "answer": "Antwort"}
    assert head_faults(source("s", files[2], columns=columns)) == []
    assert head_faults(source("s", hub("h", [1]))) == []


def test_a_source_of_flan_has_no_header_and_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "cot.tsv"
    path.write_text('"Is 7 prime?\tyes\tIt has\\ntwo divisors.\n"Is 8" prime?\tno\tEven.\n')
    result, rows = build(source("f", DataFile(path), format="flan_cot"))
    assert (result.samples, result.rows_bad) == (2, 0)
    assert rows[0]["messages"][0]["content"] == '"Is 7 prime?'
    with pytest.raises(WorkError, match="no known format has the fields"):
        build(source("f", DataFile(path)))


def test_columns_and_format_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="columns and format exclude each other"):
        source("f", format="alpaca", columns={"prompt": "a", "answer": "b"})
