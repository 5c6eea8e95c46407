"""Rows out of every container, whole and broken."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import mona.containers
from mona.containers import BadRow, EmptyFileError, RawRow, read_rows
from mona.errors import RequestError
from mona.files import DataFile, archive_members

BROKEN_ARRAY = Path(__file__).resolve().parents[3] / "shared/data/broken/invalid_shard.json"
ROWS = [
    {"instruction": "Name a river.", "output": "The Aare,\nfrom its glacier."},
    {"instruction": "Zähle bis drei: \u2028", "output": "eins, zwei, drei"},
    {"instruction": 'Quote "this"\tword', "output": "\\n is two characters"},
]


def read(path: Path) -> list[RawRow | BadRow]:
    return list(read_rows(DataFile(path)))


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_text(rows: list[dict[str, str]]) -> str:
    return pl.DataFrame(rows).write_csv(quote_style="always")


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    return buffer.getvalue()


TSV_ROWS = [{"question": "a", "answer": '"b" said c'}, {"question": "", "answer": '"'}]
CONTAINERS: dict[str, tuple[list[dict[str, str]], bytes]] = {
    "rows.jsonl": (ROWS, json_lines(ROWS).encode()),
    "rows.ndjson": (ROWS, ("\n" + json_lines(ROWS)).encode()),
    "pretty.json": (ROWS, json.dumps(ROWS, indent=4).encode()),
    "compact.json": (ROWS, json.dumps(ROWS, separators=(",", ":")).encode()),
    "lines.json": (ROWS, json_lines(ROWS).encode()),
    "single.json": (ROWS[:1], json.dumps(ROWS[0], indent=1).encode()),
    "wrapped.json": (ROWS, json.dumps({"version": 1, "data": ROWS}).encode()),
    "rows.parquet": (ROWS, parquet_bytes(ROWS)),
    "rows.csv": (ROWS, csv_text(ROWS).encode()),
    "rows.tsv": (TSV_ROWS, b'question\tanswer\na\t"b" said c\r\n\t"\n'),
    "LOUD.TSV": ([{"why": "a", "so": "b"}], b"why\tso\na\tb\n"),
    "bom.jsonl": (ROWS, b"\xef\xbb\xbf" + json_lines(ROWS).encode()),
    "bom.json": (ROWS, b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    "bom.csv": (ROWS, b"\xef\xbb\xbf" + csv_text(ROWS).encode()),
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_its_rows(tmp_path: Path, name: str, suffix: str) -> None:
    rows, content = CONTAINERS[name]
    path = written(tmp_path, name + suffix, COMPRESS[suffix](content))
    found = read(path)
    assert [row.data for row in found if isinstance(row, RawRow)] == rows
    assert len(found) == len(rows)
    assert {row.file for row in found} == {path.name}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_member_of_an_archive_reads_like_a_file(tmp_path: Path, name: str) -> None:
    rows, content = CONTAINERS[name]
    archive = tmp_path / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(f"data/one/{name}", content)
    file = DataFile(archive, f"data/one/{name}")
    found = list(read_rows(file))
    assert [row.data for row in found if isinstance(row, RawRow)] == rows
    assert found[0].file == f"{archive.name}!data/one/{name}"


def test_lines_are_where_rows_start(tmp_path: Path) -> None:
    lines = written(tmp_path, "a.jsonl", '\n{"a": 1}\n\n \n{"a": 2}')
    assert [row.line for row in read(lines)] == [2, 5]
    array = written(tmp_path, "a.json", '[\n{"a":\n 1},\n\n{"a": 2}, {"a": 3}\n]\n')
    assert [row.line for row in read(array)] == [2, 5, 5]
    table = written(tmp_path, "a.csv", 'input,output\n"x\ny",1\nz,2\n')
    assert [row.line for row in read(table)] == [2, 4]
    plain = written(tmp_path, "a.tsv", "x\ty\n\nz\tw\n")
    assert [row.line for row in read_rows(DataFile(plain), ("q", "a"))] == [1, 3]
    columns = written(tmp_path, "a.parquet", parquet_bytes([{"a": n} for n in range(600)]))
    assert [row.line for row in read(columns)] == list(range(1, 601))


def test_instances_of_a_task_file_carry_its_definition(tmp_path: Path) -> None:
    task = {
        "Contributors": ["nobody"],
        "Definition": ["Reverse the word."],
        "Positive Examples": [{"input": "abc", "output": "cba"}],
        "Instances": [{"id": "t-0", "input": "pit", "output": ["tip"]}],
    }
    (row,) = read(written(tmp_path, "task0.json", json.dumps(task, indent=4)))
    assert isinstance(row, RawRow)
    assert row.line == 1
    assert row.data == {
        "Definition": ["Reverse the word."],
        "id": "t-0",
        "input": "pit",
        "output": ["tip"],
    }


# --- faults -------------------------------------------------------------------------------


def faults(path: Path) -> tuple[list[Any], list[tuple[int, str]]]:
    found = read(path)
    return (
        [row.data for row in found if isinstance(row, RawRow)],
        [(row.line, row.reason) for row in found if isinstance(row, BadRow)],
    )


def test_each_bad_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b'{"a": 1}',
            b'{"a": 2',
            b"[1, 2]",
            b'{"a": "caf\xe9"}',
            b'{"a": 3}',
            b'{"a": ' + b"[" * 100_000,
            b'{"a": ' + b"9" * 5_000 + b"}",
            b'{"a": 4} {"a": 5}',
            b'{"a": 6}',
        ]
    )
    good, bad = faults(written(tmp_path, "a.jsonl", content))
    assert good == [{"a": 1}, {"a": 3}, {"a": 6}]
    assert [line for line, _ in bad] == [2, 3, 4, 6, 7, 8]
    reasons = [reason for _, reason in bad]
    assert reasons[0] == "invalid JSON: Expecting ',' delimiter (column 8)"
    assert reasons[1] == "the row is a JSON list, not an object"
    assert reasons[2] == "not UTF-8 (byte 0xE9)"
    assert "recursion" in reasons[3]
    assert "digits" in reasons[4]
    assert reasons[5] == "invalid JSON: Extra data (column 10); 2 rows in one line"


A, B, C = (json.dumps({"k": name, "nested": [{"m": 1}]}) for name in "abc")


@pytest.mark.parametrize(
    ("text", "kept", "defects"),
    [
        (f"[{A},\n{B},\n]", "ab", [(3, "a comma before the closing bracket")]),
        (f"[{A},\n,{B}]", "ab", [(2, "Expecting value")]),
        (f"[{A}\n{B}]", "ab", [(2, "no comma between two elements")]),
        (f"[{A},\n{B}", "ab", [(2, "the array is not closed")]),
        (f"[{A},\n{B[:-3]}", "a", [(2, "Expecting ',' delimiter")]),
        (f"[{A},\n{B}],\n{C}", "abc", [(2, "text behind the end of the array")]),
        (f"[{A},\noops,\n{C}]", "ac", [(2, "Expecting value")]),
        (f"[{A}\noops\n,{C}]", "ac", [(2, "expecting ',' or ']'")]),
        (
            f'[{A},\n{{"k": "b", "nested": [{{"m": 1}}, {{"m" 2}}]}},\n{C}]',
            "ac",
            [(2, "Expecting ':'")],
        ),
        (f'[{A},\n{{"k": "b,\n "nested": []}},\n{C}]', "ac", [(2, "Invalid control character")]),
        (f'[{A},\n{{"k": "b, "nested": []}},\n{C}]', "ac", [(2, "Expecting ',' delimiter")]),
        (f'[{{"k" "a"}},\n{B},{C}]', "bc", [(1, "Expecting ':' delimiter")]),
        (f'[{{"k": "a", "nested": [{{"m" 1}}, {{"m": 2}}]}},\n{B}]', "b", [(1, "Expecting ':'")]),
        (f"[{A},\n[1],\n{C}]", "ac", [(2, "the row is a JSON list, not an object")]),
        (f'[{A},\n{{"k": {"[" * 100_000}}},\n{C}]', "ac", [(2, "recursion")]),
    ],
)
def test_a_fault_in_an_array_costs_the_objects_it_touches(
    tmp_path: Path, text: str, kept: str, defects: list[tuple[int, str]]
) -> None:
    good, bad = faults(written(tmp_path, "a.json", text))
    assert "".join(row["k"] for row in good) == kept
    assert [line for line, _ in bad] == [line for line, _ in defects]
    assert all(part in reason for (_, reason), (_, part) in zip(bad, defects, strict=True))


def test_a_wrong_byte_in_an_array_costs_one_object(tmp_path: Path) -> None:
    content = f"[\n{A},\n{B},\n{C}]".encode().replace(b'"b"', b'"\xfcb"')
    good, bad = faults(written(tmp_path, "a.json", content))
    assert [row["k"] for row in good] == ["a", "c"]
    assert bad == [(3, "not UTF-8 (byte 0xFC)")]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('a{["]},:\\\n\t\u2028é𝄞'), max_size=40)
)


@contextmanager
def reads_of(size: int) -> Iterator[None]:
    """Texts are read so many characters at a time, so that reads end anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mona.containers, "_READ_BYTES", size)
        yield


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["k", "long name"]), SCALARS) | SCALARS, min_size=1),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_an_array_is_read_as_a_strict_parser_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[Any],
    size: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path = written(tmp_path_factory.mktemp("array"), "a.json", text)
    with reads_of(size):
        good, bad = faults(path)
    assert good == [value for value in values if isinstance(value, dict)]
    kinds = [type(value).__name__ for value in values if not isinstance(value, dict)]
    assert [reason for _, reason in bad] == [
        f"the row is a JSON {kind}, not an object" for kind in kinds
    ]


@settings(deadline=None)
@given(st.data(), st.integers(1, 40))
def test_only_the_damaged_row_is_lost_wherever_the_damage_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, size: int
) -> None:
    lengths = data.draw(st.lists(st.sampled_from([0, 5, 60]), min_size=2, max_size=5))
    elements = [json.dumps({"n": n, "t": "x\n" * length}) for n, length in enumerate(lengths)]
    hurt = data.draw(st.integers(0, len(lengths) - 1))
    cut = data.draw(st.integers(1, len(elements[hurt]) - 1))
    elements[hurt] = elements[hurt][:cut] + "\x00" + elements[hurt][cut:]
    path = written(tmp_path_factory.mktemp("array"), "a.json", "[" + ",\n".join(elements) + "]")
    with reads_of(size):
        good, bad = faults(path)
    assert [row["n"] for row in good] == [n for n in range(len(lengths)) if n != hurt]
    assert [line for line, _ in bad] == [hurt + 1]


@pytest.mark.skipif(not BROKEN_ARRAY.exists(), reason="needs ../shared/data")
def test_a_shipped_array_with_a_local_fault_keeps_its_objects() -> None:
    good, bad = faults(BROKEN_ARRAY)
    # What a strict parser reads once the comma before the bracket is taken out.
    repaired = BROKEN_ARRAY.read_text("utf-8").rstrip().removesuffix("]").rstrip().removesuffix(",")
    assert good == json.loads(repaired + "]")
    assert len(good) == 2801
    assert bad == [(14007, "invalid JSON: a comma before the closing bracket")]


def test_a_broken_object_file_is_one_defect_with_its_line(tmp_path: Path) -> None:
    text = json.dumps({"data": ROWS}, indent=1).replace('"output": "eins', '"output" "eins')
    _, bad = faults(written(tmp_path, "a.json", text))
    assert bad == [(9, "invalid JSON: Expecting ':' delimiter")]
    content = '{\n"data":\n ["é"]}'.encode("latin-1")
    assert faults(written(tmp_path, "b.json", content)) == ([], [(3, "not UTF-8 (byte 0xE9)")])


def test_rows_of_a_list_in_an_object_that_are_no_objects_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '{"data": [{"a": 1}, 7]}')
    assert faults(path) == ([{"a": 1}], [(2, "the row is a JSON int, not an object")])


def test_faults_of_tables_are_named(tmp_path: Path) -> None:
    content = b'input,output\na,b\nc\n"d"x,e\nf,\xff\ng,h,i\nj,k\n"l,m\n'
    good, bad = faults(written(tmp_path, "a.csv", content))
    assert good == [{"input": "a", "output": "b"}, {"input": "j", "output": "k"}]
    assert [line for line, _ in bad] == [3, 4, 5, 6, 8]
    assert [reason for _, reason in bad][:4] == [
        "1 cells where 2 are expected",
        "invalid CSV: ',' expected after '\"'",
        "not UTF-8 (byte 0xFF)",
        "3 cells where 2 are expected",
    ]
    assert "unexpected end of data" in bad[4][1]


HEADERS_SEEN = [
    ",instruction,output",
    "Instruction,Input,Output",
    "id,text,label",
    "Unnamed: 0,text,summary",
    "premise,hypothesis,label",
    "What is an input?,output of a process,so",
]


@pytest.mark.parametrize("header", HEADERS_SEEN)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_the_first_line_of_a_table_is_its_header(
    tmp_path: Path, header: str, separator: str
) -> None:
    name = "a.csv" if separator == "," else "a.tsv"
    names = header.split(",")
    text = separator.join(names) + "\n" + separator.join(["1", "two", "three"]) + "\n"
    (row,) = read(written(tmp_path, name, text))
    assert isinstance(row, RawRow)
    assert row.data == dict(zip(names, ["1", "two", "three"], strict=True))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_that_may_lack_a_header_has_it_by_its_names_only(tmp_path: Path, name: str) -> None:
    separator = "," if name == "a.csv" else "\t"
    bare = written(tmp_path, name, separator.join(["why", "so", "for"]) + "\n")
    names = ("question", "answer", "rationale")
    assert [row.data for row in read_rows(DataFile(bare), names) if isinstance(row, RawRow)] == [
        {"0": "why", "1": "so", "2": "for"}
    ]
    full = written(tmp_path, name, f"{separator.join(reversed(names))}\n{separator.join('abc')}\n")
    assert [row.data for row in read_rows(DataFile(full), names) if isinstance(row, RawRow)] == [
        {"rationale": "a", "answer": "b", "question": "c"}
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    twice = pa.table([["x"], ["y"]], names=["text", "text"])
    buffer = io.BytesIO()
    pq.write_table(twice, buffer)
    text = "text,text\nx,y\n" if name == "a.csv" else "text\ttext\nx\ty\n"
    content = buffer.getvalue() if name == "a.parquet" else text.encode()
    with pytest.raises(RequestError, match=f"{name}: two columns are called 'text'"):
        read(written(tmp_path, name, content))


# --- tab separated values, quoted or not --------------------------------------------------

QUOTED = [
    {"instruction": "Quote", "output": 'She said "come in" twice'},
    {"instruction": "Two lines", "output": "first\nsecond"},
    {"instruction": "A\ttab", "output": "plain"},
    {"instruction": '"Whole"', "output": ""},
]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [0, 1, 2, 3], [1, 3]])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_quoted_tsv_is_read_as_it_was_written(
    tmp_path: Path, quoting: Any, chosen: list[int], suffix: str
) -> None:
    rows = [*(QUOTED[i] for i in chosen), {"instruction": "a", "output": "b"}]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), delimiter="\t", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    path = written(tmp_path, f"a.tsv{suffix}", COMPRESS[suffix](text.getvalue().encode()))
    assert faults(path) == (rows, [])


@pytest.mark.parametrize(
    "cells",
    [
        ['"Yes" he said', "b"],
        ['"Yes', 'no"'],
        ['"', "b"],
        ['"all of it"', "b"],
        ["a", '"Yes" or "no"'],
        ["a", 'say ""'],
    ],
)
def test_quotation_marks_of_a_tsv_without_quoting_are_text(
    tmp_path: Path, cells: list[str]
) -> None:
    rows = [{"input": "q", "output": "r"}, dict(zip(("input", "output"), cells, strict=True))]
    text = "".join("\t".join(row.values()) + "\n" for row in [{"i": "input", "o": "output"}, *rows])
    assert faults(written(tmp_path, "a.tsv", text)) == (rows, [])
    # A source that says its files have no header says that they know no quoting.
    named = read_rows(DataFile(written(tmp_path, "b.tsv", text)), ("input", "output"))
    assert [row.data for row in named if isinstance(row, RawRow)] == rows


def test_a_fault_in_a_quoted_tsv_does_not_unquote_it(tmp_path: Path) -> None:
    text = 'input\toutput\na\t"say ""b"" now"\nc\t"d" e\nf\tg\n'
    good, bad = faults(written(tmp_path, "a.tsv", text))
    assert good == [{"input": "a", "output": 'say "b" now'}, {"input": "f", "output": "g"}]
    assert [line for line, _ in bad] == [3]


# --- files whose rows are lost ------------------------------------------------------------


def lost(path: Path) -> list[BadRow]:
    return [row for row in read(path) if isinstance(row, BadRow) and row.rest_lost]


POINTERS = {
    "LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "annex": "/annex/objects/SHA256E-s1048576--4d7a2146.jsonl\n",
    "web page": "<!DOCTYPE html>\n<html><body>404: not found</body></html>\n",
    "page": "\n <html><head><title>Sign in</title></head></html>",
    "web": '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "PDF": "%PDF-1.7\n",
    "zip": "PK\x03\x04",
}


@pytest.mark.parametrize("what", POINTERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.csv.gz"])
def test_what_stands_in_place_of_data_is_named(tmp_path: Path, name: str, what: str) -> None:
    (row,) = lost(written(tmp_path, name, POINTERS[what]))
    assert what in row.reason
    assert row.line == 1
    packed = written(tmp_path, "b.jsonl.gz", gzip.compress(POINTERS[what].encode()))
    assert what in lost(packed)[0].reason


def test_a_compression_that_is_not_what_the_name_says_is_named(tmp_path: Path) -> None:
    content = json_lines(ROWS).encode()
    (row,) = lost(written(tmp_path, "a.jsonl.gz", content))
    assert "not compressed by gzip" in row.reason
    (row,) = lost(written(tmp_path, "a.jsonl", zstandard.compress(content)))
    assert row.reason == "the file is compressed by zstd: its name should end in .zst"


CUT: list[tuple[str, bytes]] = [
    ("a.jsonl", b'{"a": 1}\n{"a": "cut'),
    ("a.jsonl", b'{"a": 1}\n{"a": [1, 2'),
    ("a.jsonl", b'{"a": 1}\n' + bytes(500) + b'"}\n{"a": 3}\n'),
    ("a.json", b'[{"a": 1},\n{"a": "cut'),
    ("a.json", b'[{"a": 1},\n{"a": [1, 2]'),
    ("a.json", b'[{"a": 1},\n'),
    ("a.json", b'{"data": [{"a": 1}, {"a'),
    ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n'),
    ("a.csv", b'a,b\n1,"2\n' + b"3,4\n" * 3_000 + b'5,"6"\n'),
    ("a.csv", b'a,b\n1,"2\n' + b"3,".ljust(1 << 12, b"x") * 1 + b"\n" + b"4,y\n" * 2_500),
    ("a.jsonl", b'{"a": 1}\n{"a": "' + b"x" * (1 << 25) + b'"}\n{"a": 3}\n'),
    ("a.json", b'[{"a": 1}, {"a": "' + b"x" * (1 << 26) + b'"}, {"a": 3}]\n'),
    ("a.tsv", b"a\tb\n1\t" + b"x" * (1 << 25) + b"\n3\t4\n"),
]


@pytest.mark.parametrize(("name", "content"), CUT)
def test_a_fault_that_loses_more_than_a_row_says_so(
    tmp_path: Path, name: str, content: bytes
) -> None:
    assert len(lost(written(tmp_path, name, content))) == 1


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", b'{"a": 1}\n[{"a": 2}, {"a": 3}, {"a": 4}]\n', [3]),
        ("a.jsonl", b'{"a": 1}\n{"a": 2}{"a": 3} {"a": 4}\n', [3]),
        ("a.csv", b'a,b\n1,"2\n3,4\n5,6\n7,"8"\n9,10\n', [4]),
    ],
)
def test_a_fault_counts_as_the_rows_it_may_have_been(
    tmp_path: Path, name: str, content: bytes, rows: list[int]
) -> None:
    found = read(written(tmp_path, name, content))
    assert [row.rows for row in found if isinstance(row, BadRow)] == rows
    assert not any(row.rest_lost for row in found if isinstance(row, BadRow))


def test_a_damaged_parquet_says_how_many_rows_are_lost(tmp_path: Path) -> None:
    rows = [{"input": f"{n * 7919 % 10007} " * 20, "output": str(n)} for n in range(3_000)]
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows), buffer, row_group_size=1_000, write_page_checksum=True
    )
    whole = bytearray(buffer.getvalue())
    whole[len(whole) // 2] ^= 0xFF
    path = written(tmp_path, "a.parquet", bytes(whole))
    good, _ = faults(path)
    assert good == rows[: len(good)]
    (row,) = lost(path)
    assert f"{3_000 - len(good):,} of 3,000 rows are lost" in row.reason


def test_values_of_parquet_that_python_has_not_cost_their_row(tmp_path: Path) -> None:
    days = pa.array([0, 2_932_896, 2_932_897 + 10**6], pa.int32()).cast(pa.date32())
    texts = pa.array([b"a", b"caf\xe9", b"c"], pa.binary()).view(pa.string())
    times = pa.array([1, 10**18 + 1, 2], pa.timestamp("ns", "UTC"))
    table = pa.table({"input": texts, "output": ["x", "y", "z"], "day": days, "at": times})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    good, bad = faults(written(tmp_path, "a.parquet", buffer.getvalue()))
    # No format reads dates: they are left out, whatever their year.
    assert good == [{"input": "a", "output": "x"}, {"input": "c", "output": "z"}]
    assert bad == [(2, "column 'input': not UTF-8 (byte 0xE9)")]
    nested = pa.array([{"day": day} for day in (0, 9 * 10**6)]).cast(
        pa.struct([("day", pa.int32())])
    )
    nested = nested.cast(pa.struct([("day", pa.date32())]))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"input": ["a", "b"], "meta": nested}), buffer)
    good, bad = faults(written(tmp_path, "b.parquet", buffer.getvalue()))
    assert [row["input"] for row in good] == ["a"]
    assert bad[0][0] == 2
    assert bad[0][1].startswith("column 'meta': ")


# --- archives -----------------------------------------------------------------------------


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> DataFile:
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("a.jsonl", content)
    return DataFile(path, "a.jsonl")


def patched(path: Path, signature: bytes, offset: int, value: bytes) -> None:
    """Writes into every header of a zip archive that has a signature."""
    content = bytearray(path.read_bytes())
    place = content.find(signature)
    while place >= 0:
        content[place + offset : place + offset + len(value)] = value
        place = content.find(signature, place + 1)
    path.write_bytes(bytes(content))


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
DAMAGE: dict[str, list[tuple[bytes, int, bytes]]] = {
    "encrypted": [(LOCAL, 6, b"\x01\x00"), (CENTRAL, 8, b"\x01\x00")],
    "compression method": [(LOCAL, 8, b"\x63\x00"), (CENTRAL, 10, b"\x63\x00")],
    "CRC": [(LOCAL, 14, b"\x00\x01\x02\x03"), (CENTRAL, 16, b"\x00\x01\x02\x03")],
    "magic number": [(CENTRAL, 42, b"\x09\x00\x00\x00")],
    "": [(LOCAL, 30, b"b")],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_member_of_an_archive_is_one_defect(tmp_path: Path, what: str) -> None:
    path = tmp_path / "made_up.whl"
    file = archive(path, json_lines(ROWS * 1_000).encode())
    for signature, offset, value in DAMAGE[what]:
        patched(path, signature, offset, value)
    last = list(read_rows(file))[-1]
    assert isinstance(last, BadRow)
    assert last.rest_lost
    assert what in last.reason
    assert last.file == "made_up.whl!a.jsonl"


def test_what_is_no_archive_or_cut_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.whl"
    archive(path, json_lines(ROWS * 1_000).encode())
    for number, content in enumerate([b"", b"no zip", path.read_bytes()[:-30]]):
        other = tmp_path / f"{number}.whl"
        other.write_bytes(content)
        with pytest.raises(RequestError, match=rf"^{number}\.whl: zip: "):
            archive_members(other)
        (row,) = read_rows(DataFile(other, "a.jsonl"))
        assert isinstance(row, BadRow)
        assert row.rest_lost


def test_a_line_far_beyond_memory_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("a.jsonl", "w", force_zip64=True) as member,
    ):
        member.write(b'{"a": "')
        for _ in range(200):
            member.write(b"w" * (1 << 20))
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    (row,) = read_rows(DataFile(path, "a.jsonl"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(row, BadRow)
    assert row.reason == "the line is longer than 32 MiB; the rest is lost"
    assert peak < 120_000_000


def test_a_file_name_that_is_no_utf_8_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    try:
        path.write_text(json_lines(ROWS))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert [row.file for row in read(path)] == ["caf\\xe9.jsonl"] * 3


def test_a_window_that_is_too_large_for_arrow_is_named(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    content = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = content.compress(json_lines(ROWS).encode()) + content.flush()
    (row,) = lost(written(tmp_path, "a.jsonl.zst", packed))
    assert row.reason.startswith("zstd: its window is above 128 MiB: compress it again")


def test_a_file_that_can_not_be_opened_is_one_defect(tmp_path: Path) -> None:
    (row,) = lost(tmp_path / "gone.jsonl")
    assert row.reason == "No such file or directory; the rest is lost"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_truncated_stream_ends_in_one_defect(tmp_path: Path, name: str, suffix: str) -> None:
    rows = [{"input": f"question {n * 7919 % 10007}", "output": str(n)} for n in range(30_000)]
    content = {"a.jsonl": json_lines(rows), "a.json": json.dumps(rows), "a.csv": csv_text(rows)}
    whole = COMPRESS[suffix](content[name].encode())
    for share in (0.5, 0.999):
        path = written(tmp_path, name + suffix, whole[: int(len(whole) * share)])
        good, bad = faults(path)
        assert good == rows[: len(good)]
        assert len(good) < len(rows)
        assert len(bad) == 1
        assert "Truncated compressed stream" in bad[0][1]


def test_a_flipped_byte_in_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(json_lines(ROWS * 50).encode()))
    whole[len(whole) // 2] ^= 0x10
    _, bad = faults(written(tmp_path, "a.jsonl.gz", bytes(whole)))
    assert any("gzip:" in reason and reason.endswith("the rest is lost") for _, reason in bad)


def test_broken_parquet_is_a_defect(tmp_path: Path) -> None:
    whole = parquet_bytes(ROWS)
    for content in (b"PAR1 but not really", whole[: len(whole) // 2]):
        good, bad = faults(written(tmp_path, "a.parquet", content))
        assert good == []
        assert bad[0][0] == 1
        assert bad[0][1].startswith("invalid Parquet: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b" \n\n"),
        ("a.json", b""),
        ("a.json", b"[]"),
        ("a.json", b"[ \n ] \n"),
        ("a.json", b'{"data": []}'),
        ("a.csv", b""),
        ("a.csv", b"input,output\n"),
        ("a.parquet", b""),
        ("a.parquet", parquet_bytes([{"a": 1}][:0] or [])),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.gz", b""),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(EmptyFileError, match=f"{name}: empty file"):
        read(written(tmp_path, name, content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_utf_16_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, '[{"a": 1}]\n'.encode("utf-16"))
    with pytest.raises(RequestError, match=f"{name}: the text is UTF-16"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["a.jsonl", "pretty.json", "a.csv", "a.tsv"])
def test_other_encodings_end_in_defects(tmp_path: Path, name: str, encoding: str) -> None:
    rows = [{"input": "é", "output": "è"}] * 3
    text = {
        "a.jsonl": json_lines(rows),
        "pretty.json": json.dumps(rows, indent=1, ensure_ascii=False),
        "a.csv": "é,è\n" * 3,
        "a.tsv": "é\tè\n" * 3,
    }[name]
    try:
        good, bad = faults(written(tmp_path, name, text.encode(encoding)))
    except RequestError as error:
        assert "UTF-16" in str(error)  # noqa: PT017
    else:
        assert bad
        assert good == [] or encoding == "utf-16-le"


@pytest.mark.parametrize("name", ["a.txt", "jsonl", ".json", "a.json.bz2", "a.gz"])
def test_an_unknown_suffix_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"unknown suffix; known are \.jsonl, .*\.tsv"):
        read_rows(DataFile(tmp_path / name))


# --- size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_a_row_of_ten_megabytes_is_a_row(tmp_path: Path, name: str) -> None:
    row = {"input": "long " * 2_000_000, "output": "x"}
    content: dict[str, bytes] = {
        "a.jsonl": json_lines([row]).encode(),
        "a.json": json.dumps([row]).encode(),
        "a.csv": csv_text([row]).encode(),
        "a.tsv": f"input\toutput\n{row['input']}\tx\n".encode(),
        "a.parquet": parquet_bytes([row]),
    }
    (found,) = read(written(tmp_path, name, content[name]))
    assert isinstance(found, RawRow)
    assert found.data == row


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    row = {"input": "w" * 1000, "output": "x"}
    separator = ",\n" if name == "a.json" else "\n"
    line = f"{row['input']}\t{row['output']}" if name == "a.tsv" else json.dumps(row)
    line = f"{row['input']},{row['output']}" if name == "a.csv" else line
    opening, end = ("[", "]") if name == "a.json" else ("", "\n")
    path = tmp_path / name
    if name in ("a.csv", "a.tsv"):
        opening = "input,output\n" if name == "a.csv" else "input\toutput\n"
    with path.open("w") as stream:
        stream.write(opening)
        for piece in itertools.repeat(line + separator, 29_999):
            stream.write(piece)
        stream.write(line + end)
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    count = sum(isinstance(found, RawRow) for found in read_rows(DataFile(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 10_000_000
