"""Pools: merging, provenance, quarantine, digests and seeded subsets."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mona.pool
from mona.errors import RequestError, WorkError
from mona.files import DataFile
from mona.pool import (
    POOL_SCHEMA,
    QUARANTINE_SCHEMA,
    NamedRows,
    PoolSource,
    Withdrawn,
    build_pool,
    pool_digest,
)
from mona.sample import Message
from mona.spec import Subsample
from tests.mona.pools import build, data_files, hub, identity, lines, row, source


@pytest.fixture(autouse=True, scope="module")
def _small_batches() -> Iterator[None]:
    """Batches of a few rows, so that small pools cross their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mona.pool, "_BATCH_ROWS", 3)
        yield


def test_what_is_withdrawn_is_counted_and_left_out() -> None:
    zoo, abc = source("zoo", hub("hub/zoo", [5, 2])), source("abc", hub("hub/abc", [7, 5, 2]))
    result, rows = build(zoo, abc, withdrawn=Withdrawn(frozenset([identity(2)])))
    assert [row["sample_id"] for row in rows] == [identity(5), identity(7)]
    assert (result.rows_read, result.rows_withdrawn, result.rows_left_out) == (5, 2, 0)
    result, rows = build(zoo, abc, withdrawn=Withdrawn(sources=("zoo",)))
    assert [row["sample_id"] for row in rows] == [identity(7), identity(5), identity(2)]
    assert {origin["source"] for row in rows for origin in row["origins"]} == {"abc"}
    with pytest.raises(WorkError, match="no row can be used; 2 were read, 2 are withdrawn"):
        build(zoo, withdrawn=Withdrawn(frozenset([identity(2), identity(5)])))


# --- the table ----------------------------------------------------------------------------


def test_duplicates_are_merged_with_every_origin(tmp_path: Path) -> None:
    result = build_pool(
        [
            source("zoo", hub("hub/zoo", [5, 2, 5]), licence="mit"),
            source("abc", hub("hub/abc", [7, 5]), licence="apache-2.0"),
        ],
        tmp_path,
        max_bad_rows=0.0,
    )
    table = pq.read_table(result.parquet)
    assert table.schema.equals(POOL_SCHEMA)
    rows = table.to_pylist()
    assert [line["sample_id"] for line in rows] == [identity(5), identity(2), identity(7)]
    assert rows[0] == {
        "sample_id": identity(5),
        "messages": [
            {"role": "user", "content": "Count to 5.", "learn": None},
            {"role": "assistant", "content": "0 1 2 3 4", "learn": None},
        ],
        "origins": [
            {"source": "abc", "licence": "apache-2.0", "file": "hub/abc", "line": 2},
            {"source": "zoo", "licence": "mit", "file": "hub/zoo", "line": 1},
            {"source": "zoo", "licence": "mit", "file": "hub/zoo", "line": 3},
        ],
        "n_chars": 20,
    }
    assert result.rows_read == 5
    assert result.rows_bad == result.rows_left_out == 0
    assert result.duplicates_merged == 2
    assert result.distinct == result.samples == 3
    assert result.characters == 20 + (11 + 3) + (11 + 13) == sum(r["n_chars"] for r in rows)
    assert result.by_source == {"abc": 2, "zoo": 2}
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "pool.parquet",
        "quarantine.parquet",
    ]


def test_a_row_that_is_read_twice_has_one_origin() -> None:
    result, rows = build(source("a", hub("h", [4, 6]), hub("h", [4, 6])))
    assert (result.rows_read, result.duplicates_merged) == (4, 2)
    assert [[origin["line"] for origin in line["origins"]] for line in rows] == [[1], [2]]


def test_formats_may_be_mixed_and_bad_rows_are_set_aside(tmp_path: Path) -> None:
    files = data_files(
        tmp_path,
        mixed=lines(
            row(3),
            {"prompt": "p", "completion": "c"},
            {"instruction": "no answer"},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        )
        + '{"cut": \n',
        hard=lines({"odd \ud800 field": 1}, {"prompt": "p\ud800", "completion": "c"}),
    )
    mix = source("mix", *files, allow_partial=True)
    result = build_pool([mix], tmp_path / "staging", max_bad_rows=0.6)
    assert (result.rows_read, result.rows_bad, result.samples) == (7, 4, 3)
    assert pq.read_schema(result.quarantine).equals(QUARANTINE_SCHEMA)
    assert pq.read_table(result.quarantine).to_pylist() == [
        {"file": file, "line": line, "reason": reason, "source": "mix"}
        for file, line, reason in [
            ("mixed.jsonl", 3, "no answer (output or response)"),
            ("mixed.jsonl", 5, "invalid JSON: Expecting value (column 8)"),
            ("hard.jsonl", 1, "no known format has the fields ['odd \\ud800 field']"),
            ("hard.jsonl", 2, "half a surrogate pair in a user turn"),
        ]
    ]


def test_labels_follow_folders_where_the_source_says_so(tmp_path: Path) -> None:
    archive = tmp_path / "pack-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("x/data/red/a.jsonl", lines(row(1), row(2)))
        packed.writestr("x/data/blue/a.jsonl", lines(row(2), row(3)))
    files = [DataFile(archive, f"x/data/{folder}/a.jsonl") for folder in ("red", "blue")]
    result, rows = build(source("pack", *files, label_by_folder=True))
    assert result.by_source == {"pack/blue": 2, "pack/red": 2}
    assert [[origin["source"] for origin in line["origins"]] for line in rows] == [
        ["pack/red"],
        ["pack/blue", "pack/red"],
        ["pack/blue"],
    ]
    assert build(source("pack", *files))[0].by_source == {"pack": 3}


def test_a_row_limit_counts_good_rows_of_each_file(tmp_path: Path) -> None:
    files = data_files(
        tmp_path,
        one=lines(row(1), {"x": 1}, row(2), row(3), row(4)),
        two=lines(row(5)),
        other=lines(*[{"x": 1}] * 50),
    )
    few = source("few", *files, max_rows_per_file=2, allow_partial=True)
    result, rows = build(few, max_bad_rows=1.0)
    assert [line["sample_id"] for line in rows] == [identity(1), identity(2), identity(5)]
    # Of a file with bad rows only, as many are read as would be of a good one.
    assert (result.rows_read, result.rows_bad) == (6, 3)


def test_answers_that_were_not_preferred_are_left_out() -> None:
    pairs = [{**row(number), "label": number % 2 == 0} for number in range(1, 6)]
    chats = [
        {"prompt": pair["instruction"], "completion": pair["output"], "label": pair["label"]}
        for pair in pairs
    ]
    result, _ = build(source("kto", NamedRows("h", chats), preference="chosen"))
    assert (result.rows_read, result.samples, result.rows_left_out) == (5, 2, 3)
    with pytest.raises(WorkError, match="a preference row"):
        build(source("kto", NamedRows("h", chats)))


def test_progress_adds_up_to_the_rows_read() -> None:
    steps: list[int] = []
    result, _ = build(source("a", hub("h", range(1, 21))), progress=steps.append)
    assert sum(steps) == result.rows_read == 20
    assert len(steps) > 3


# --- failures -----------------------------------------------------------------------------


def test_too_many_bad_rows_stop_the_work_with_the_first_reasons(tmp_path: Path) -> None:
    files = data_files(tmp_path, a=lines(row(1), {"x": 1}, {"y": 1}, {"z": 1}, {"w": 1}))
    with pytest.raises(WorkError) as failure:
        build(source("a", *files), max_bad_rows=0.79)
    assert str(failure.value) == (
        "4 of 5 rows are bad (80.00%, allowed 79.00%): "
        "a.jsonl:2: no known format has the fields ['x']; "
        "a.jsonl:3: no known format has the fields ['y']; "
        "a.jsonl:4: no known format has the fields ['z']; "
        "a source's 'columns: {prompt: ..., answer: ...}' names its own fields"
    )
    assert build(source("a", *files), max_bad_rows=0.8)[0].samples == 1


def test_a_pool_without_a_good_row_fails(tmp_path: Path) -> None:
    files = data_files(tmp_path, a=lines({"x": 1}))
    with pytest.raises(WorkError, match="no row can be used; 1 were read"):
        build(source("a", *files, allow_partial=True), max_bad_rows=1.0)


def test_sources_without_rows_are_refused(tmp_path: Path) -> None:
    (empty,) = data_files(tmp_path, void="")
    (full,) = data_files(tmp_path, full=lines(row(1)))
    with pytest.raises(RequestError, match=r"^void\.jsonl: empty file$"):
        build(source("b", full), source("a", empty))
    with pytest.raises(RequestError, match="source 'a': no files"):
        build(source("a"))
    with pytest.raises(RequestError, match="source 'a': no rows"):
        build(source("a", NamedRows("h", [])))


def test_an_empty_file_among_others_is_one_defect(tmp_path: Path) -> None:
    files = data_files(tmp_path, void="", full=lines(row(1), row(2), row(3)))
    staging = tmp_path / "staging"
    part = source("a", *files, allow_partial=True)
    result = build_pool([part], staging, max_bad_rows=0.25)
    assert (result.rows_read, result.rows_bad, result.samples) == (4, 1, 3)
    assert pl.read_parquet(result.quarantine).rows() == [("void.jsonl", 0, "empty file", "a")]


def test_a_source_that_breaks_off_leaves_no_pool_and_can_be_read_again(tmp_path: Path) -> None:
    def breaking() -> Iterator[dict[str, Any]]:
        yield from (row(number) for number in range(1, 8))
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        build_pool([source("a", NamedRows("h", breaking()))], tmp_path, max_bad_rows=0)
    assert not (tmp_path / "pool.parquet").exists()
    again = build_pool([source("a", hub("h", range(1, 8)))], tmp_path, max_bad_rows=0)
    assert again.digest == build(source("a", hub("h", range(1, 8))))[0].digest


# --- the digest ---------------------------------------------------------------------------


def reference_digest(pairs_of: dict[str, set[tuple[str, str]]]) -> str:
    """The data version as its definition says, from {sample id: {(label, licence)}}."""
    rows = [
        hashlib.sha256(
            json.dumps([key, sorted(map(list, pairs))], separators=(",", ":")).encode()
        ).digest()
        for key, pairs in pairs_of.items()
    ]
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


NUMBERS = st.lists(st.integers(1, 12), min_size=1, max_size=25)
# Rows of two sources, each source's rows cut into files.
FILES = st.lists(NUMBERS, min_size=1, max_size=4)
fast = settings(deadline=None, max_examples=25)


def two_sources(first: list[list[int]], second: list[list[int]]) -> list[PoolSource]:
    return [
        source(
            name, *[hub(f"{name}{n}", numbers) for n, numbers in enumerate(files)], licence=licence
        )
        for name, licence, files in (("one", "mit", first), ("two", "cc0", second))
    ]


@fast
@given(FILES, FILES)
def test_the_digest_is_that_of_ids_labels_and_licences(
    first: list[list[int]], second: list[list[int]]
) -> None:
    expected: dict[str, set[tuple[str, str]]] = {}
    for pair, files in ((("one", "mit"), first), (("two", "cc0"), second)):
        for number in itertools.chain(*files):
            expected.setdefault(identity(number), set()).add(pair)
    result, rows = build(*two_sources(first, second))
    assert result.digest == reference_digest(expected)
    # First occurrences in order, and nothing lost: each row read is an origin.
    assert [line["sample_id"] for line in rows] == list(expected)
    origins = [origin for line in rows for origin in line["origins"]]
    assert len(origins) == sum(map(len, first + second)) == result.rows_read
    for line in rows:
        keys = [tuple(origin.values()) for origin in line["origins"]]
        assert keys == sorted(set(keys))


@fast
@given(NUMBERS, NUMBERS, st.randoms(use_true_random=False), st.integers(0, 25))
def test_the_digest_ignores_the_order_and_the_split_into_files(
    first: list[int], second: list[int], random: Any, cut: int
) -> None:
    shuffled = random.sample(first, len(first))
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    plain = build(*two_sources([first], [second]))[0]
    other = build(*reversed(two_sources(parts, [second[::-1]])))[0]
    assert other.digest == plain.digest
    assert other.by_source == plain.by_source


@fast
@given(FILES, FILES)
def test_reading_everything_twice_changes_nothing(
    first: list[list[int]], second: list[list[int]]
) -> None:
    once, rows = build(*two_sources(first, second))
    twice, rows_twice = build(*two_sources(first * 2, second * 2))
    assert (twice.digest, twice.samples, twice.characters) == (
        once.digest,
        once.samples,
        once.characters,
    )
    assert [line["messages"] for line in rows_twice] == [line["messages"] for line in rows]


@fast
@given(FILES, FILES)
def test_withdrawing_a_source_drops_its_origins_and_its_own_rows(
    first: list[list[int]], second: list[list[int]]
) -> None:
    both = build(*two_sources(first, second))[1]
    left = build(two_sources(first, second)[1])[1]
    expected = [
        {**line, "origins": [origin for origin in line["origins"] if origin["source"] == "two"]}
        for line in both
    ]
    by_id = {line["sample_id"]: line for line in left}
    assert by_id == {line["sample_id"]: line for line in expected if line["origins"]}


def test_the_digest_tells_labels_and_licences_apart(tmp_path: Path) -> None:
    variants = [
        [source("a", hub("h", [1, 2]), licence="mit")],
        [source("b", hub("h", [1, 2]), licence="mit")],
        [source("a", hub("h", [1, 2]), licence="cc0")],
        [source("a", hub("h", [1]), licence="mit")],
        [source("a", hub("h", [1, 2]), licence="mit"), source("b", hub("h", [2]), licence="mit")],
    ]
    digests = [build(*variant)[0].digest for variant in variants]
    assert len(set(digests)) == len(variants)
    result = build_pool(variants[0], tmp_path, max_bad_rows=0)
    stored = pq.ParquetFile(result.parquet).iter_batches(batch_size=1)
    assert pool_digest(stored) == result.digest == digests[0]


# --- subsets ------------------------------------------------------------------------------


def words(conversations: list[tuple[Message, ...]]) -> list[int]:
    return [sum(len(turn.content.split()) for turn in turns) for turns in conversations]


def expected_draw(
    pool: dict[str, list[int]], rows: int, seed: int, max_tokens: int | None
) -> set[str]:
    """A round robin taken one row at a time; `pool` maps labels to numbers, in any order."""
    first_label: dict[int, str] = {}
    for label in sorted(pool):
        for number in pool[label]:
            first_label.setdefault(number, label)
    queues = {
        label: sorted(
            (
                number
                for number, owner in first_label.items()
                if owner == label and (max_tokens is None or number + 3 <= max_tokens)
            ),
            key=lambda number: hashlib.blake2b(
                f"{seed}:{identity(number)}".encode(), digest_size=16
            ).hexdigest(),
        )
        for label in sorted(pool)
    }
    drawn: set[str] = set()
    while len(drawn) < rows and any(queues.values()):
        for queue in queues.values():
            if queue and len(drawn) < rows:
                drawn.add(identity(queue.pop(0)))
    return drawn


POOLS = st.dictionaries(st.sampled_from("abcd"), NUMBERS, min_size=1)


@fast
@given(POOLS, st.integers(1, 20), st.integers(0, 3), st.none() | st.integers(4, 16))
def test_a_subset_is_a_seeded_round_robin_over_labels(
    pool: dict[str, list[int]], rows: int, seed: int, max_tokens: int | None
) -> None:
    sources = [source(label, hub(label, numbers)) for label, numbers in pool.items()]
    tokenizer = None if max_tokens is None else "any"
    subsample = Subsample(rows=rows, seed=seed, max_tokens=max_tokens, tokenizer=tokenizer)
    # A count to n has 3 words of question and n of answer.
    expected = expected_draw(pool, rows, seed, max_tokens)
    if not expected:
        with pytest.raises(WorkError, match=f"no sample has at most {max_tokens} tokens"):
            build(*sources, subsample=subsample, count_tokens=words)
        return
    result, drawn = build(*sources, subsample=subsample, count_tokens=words)
    assert {line["sample_id"] for line in drawn} == expected
    whole = build(*sources)[1]
    assert drawn == [line for line in whole if line["sample_id"] in expected]
    assert result.samples == len(expected)
    assert result.distinct == len(whole)
    assert result.characters == sum(line["n_chars"] for line in drawn)
    assert sum(result.by_source.values()) >= result.samples
    again = build(*reversed(sources), subsample=subsample, count_tokens=words)[0]
    assert again.digest == result.digest


def test_only_samples_that_may_be_drawn_are_counted() -> None:
    asked: list[int] = []

    def counting(conversations: list[tuple[Message, ...]]) -> list[int]:
        asked.extend(words(conversations))
        return words(conversations)

    subsample = Subsample(rows=5, max_tokens=150, tokenizer="any")
    result, _ = build(
        source("a", hub("h", range(1, 200))), subsample=subsample, count_tokens=counting
    )
    assert result.samples == 5
    assert len(asked) == 5 + sum(count > 150 for count in asked)
    assert len(asked) < 30


@fast
@given(POOLS, st.integers(1, 10), st.integers(13, 20), st.sampled_from("abcd"))
def test_a_new_row_displaces_at_most_one(
    pool: dict[str, list[int]], rows: int, new: int, label: str
) -> None:
    def draw(pool: dict[str, list[int]]) -> set[str]:
        sources = [source(name, hub(name, numbers)) for name, numbers in pool.items()]
        return {line["sample_id"] for line in build(*sources, subsample=Subsample(rows=rows))[1]}

    before, after = draw(pool), draw({**pool, label: [*pool.get(label, []), new]})
    assert len(before - after) <= 1
    assert after - before <= {identity(new)}


def test_the_seed_changes_the_subset() -> None:
    draws = {
        build(source("a", hub("h", range(1, 40))), subsample=Subsample(rows=5, seed=seed))[0].digest
        for seed in range(4)
    }
    assert len(draws) == 4


def test_a_draw_of_short_samples_needs_no_tokenizer() -> None:
    sources = [source("a", hub("h", range(1, 60)))]
    whole = build(*sources, subsample=Subsample(rows=100))[1]
    longest = sorted(row["n_chars"] for row in whole)[20]
    drawn = build(*sources, subsample=Subsample(rows=100, max_chars=longest))[1]
    assert {row["sample_id"] for row in drawn} == {
        row["sample_id"] for row in whole if row["n_chars"] <= longest
    }
    few = build(*sources, subsample=Subsample(rows=5, max_chars=longest))[1]
    assert len(few) == 5
    assert {row["sample_id"] for row in few} <= {row["sample_id"] for row in drawn}
    with pytest.raises(WorkError, match="no sample has at most 1 characters"):
        build(*sources, subsample=Subsample(rows=5, max_chars=1))
