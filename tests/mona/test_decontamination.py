"""Matches against test rows, checked by hand and against a naive reference."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mona.decontamination as decontamination
from mona.containers import RawRow, read_rows
from mona.decontamination import Contamination, HeldOutIndex, find_all, fold, words_of
from mona.files import DataFile
from mona.formats import to_messages
from mona.targets import read_target

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

# 16 words: four runs of 13.
HARBOUR = (
    "The old harbour master counted seven grey boats before dawn "
    "while Nele painted her wooden oars."
)
RUN = "harbour master counted seven grey boats before dawn while nele painted her wooden"


def index_of(*texts: str, subtask: str = "s") -> HeldOutIndex:
    return HeldOutIndex.build((f"row {n}", subtask, text) for n, text in enumerate(texts))


def found(index: HeldOutIndex, *texts: str) -> Contamination | None:
    """The match of one pool row."""
    (match,) = index.find([texts])
    return match


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't PANIC: 3.5 snake_case", ["don", "t", "panic", "3", "5", "snake_case"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁne ２０", ["fine", "20"]),
        ("e\u0301tude étude", ["étude", "étude"]),
        ("水は H2O です。", ["水", "は", "h2o", "で", "す"]),
        ("Python언어 한국어 문장", ["python언어", "한국어", "문장"]),
        # A Bengali and a Telugu word, each with vowel signs, stay whole.
        ("বাংলা తెలుగు", ["বাংলা", "తెలుగు"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("[ ( < > ) ] ...", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(fold(text)) == words


@given(st.text())
def test_words_survive_a_second_folding(text: str) -> None:
    assert words_of(fold(fold(text))) == words_of(fold(text))


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_takes_the_same_words_on_both_paths(text: str) -> None:
    assert words_of(fold(text)) == words_of(fold(text + " é"))[:-1]


# --- shared runs --------------------------------------------------------------------------------


def test_a_test_row_inside_a_longer_message_is_found() -> None:
    index = index_of(
        "Something else altogether is asked in this other row of the test set.", HARBOUR
    )
    row = f"Once upon a time:\n\n{HARBOUR} And then it rained."
    match = found(index, "Tell me a story.", row)
    assert match == Contamination("row 1", "the old " + RUN.removesuffix(" her wooden"))


def test_thirteen_shared_words_are_found_whatever_case_and_punctuation() -> None:
    shouted = RUN.upper().replace(" ", " - ")
    assert found(index_of(HARBOUR), f"x {shouted} y") == Contamination("row 0", RUN)


def test_a_run_may_cross_lines_of_a_message() -> None:
    assert found(index_of(HARBOUR), RUN.replace(" ", "\n")) == Contamination("row 0", RUN)


def test_twelve_shared_words_are_not_enough() -> None:
    index = index_of(HARBOUR)
    twelve = RUN.rsplit(" ", 1)[0]
    assert found(index, f"my {twelve} spoon") is None
    # The twelve words before and behind a changed one.
    assert found(index, HARBOUR.replace("boats", "ships")) is None


def test_a_run_does_not_cross_messages() -> None:
    words = RUN.split()
    assert found(index_of(HARBOUR), " ".join(words[:7]), " ".join(words[7:])) is None


def test_a_run_does_not_cross_test_rows() -> None:
    first, second = HARBOUR.split(" before ")
    index = index_of(first, "before " + second)
    assert found(index, f"x {RUN} y") is None


def test_characters_are_words_in_scripts_without_spaces() -> None:
    question = "河边的老人每天早上都要数一数灰色的小船"
    index = index_of(question)
    assert found(index, f"他说{question[2:15]}吗") == Contamination(
        "row 0", " ".join(question[2:15])
    )
    assert found(index, f"他说{question[2:14]}吗") is None


# --- short test rows ----------------------------------------------------------------------------


def test_a_short_row_is_found_as_a_message_or_a_line() -> None:
    index = index_of("Which heron nests earliest?")
    expected = Contamination("row 0", "which heron nests earliest")
    assert found(index, "which heron nests earliest") == expected
    assert found(index, "Answer this.", "Birds.\nWhich heron nests earliest?!\nThink.") == expected
    assert found(index, "Which heron\nnests earliest?") == expected


def test_a_short_row_inside_a_line_is_not_found() -> None:
    index = index_of("Which heron nests earliest?")
    assert found(index, "Tell me: which heron nests earliest?") is None
    assert found(index, "Which heron nests") is None
    assert found(index, "Which heron nests", "earliest?") is None


def test_a_row_without_words_matches_nothing() -> None:
    index = index_of("?!", "")
    assert found(index, "?!") is None
    assert found(index, "") is None
    assert found(index) is None


# --- boilerplate --------------------------------------------------------------------------------

PREFIX = "Read the riddle below with care and answer it in one single short word please now:"
RIDDLES = [
    "what has a neck but never had any head and wears a cork instead of a hat",
    "what goes up a chimney when it is down but never down one when it is up",
    "what has many teeth and yet cannot bite anything at all in the whole wide world",
    "what gets wetter the more it dries and hangs on a hook behind the kitchen door",
]


def test_what_many_rows_of_a_subtask_begin_with_does_not_count() -> None:
    index = index_of(*(f"{PREFIX} {riddle}" for riddle in RIDDLES))
    pool_row = f"{PREFIX} what is grey and sings"
    assert found(index, pool_row) is None
    assert found(index, f"Well, {RIDDLES[2]}?") == Contamination(
        "row 2", " ".join(RIDDLES[2].split()[:13])
    )
    # In three rows it is no boilerplate yet.
    match = found(index_of(*(f"{PREFIX} {riddle}" for riddle in RIDDLES[:3])), pool_row)
    assert match is not None
    assert match.test_row == "row 0"


def test_what_many_subtasks_begin_with_does_not_count_either() -> None:
    rows = [(f"row {n}", f"subtask {n}", f"{PREFIX} {riddle}") for n, riddle in enumerate(RIDDLES)]
    assert found(HeldOutIndex.build(rows), PREFIX) is None


def test_the_limit_is_a_share_of_the_rows_in_large_tasks() -> None:
    filler = [f"{HARBOUR} {' '.join(f'w{n}x{i}' for i in range(13))}" for n in range(5)]
    others = [" ".join(f"o{n}x{i}" for i in range(13)) for n in range(495)]
    assert found(index_of(*filler, *others), HARBOUR) is not None
    assert found(index_of(*filler, *others[:-1]), HARBOUR) is None


def test_a_row_repeated_within_one_row_counts_once() -> None:
    assert found(index_of(f"{HARBOUR} {HARBOUR} {HARBOUR} {HARBOUR}"), RUN) is not None


def test_a_row_of_nothing_but_boilerplate_is_matched_whole() -> None:
    index = index_of(PREFIX, *(f"{PREFIX} {riddle}" for riddle in RIDDLES))
    assert found(index, f"{PREFIX} indeed") is None
    match = found(index, f"Hello!\n{PREFIX}")
    assert match is not None
    assert match.test_row == "row 0"


def test_short_rows_that_many_test_rows_are_do_not_count() -> None:
    rows = ["Which is true?"] * 4 + ["Which is false?"] * 3
    index = index_of(*rows)
    assert found(index, "Which is true?") is None
    assert found(index, "Which is false?") == Contamination("row 4", "which is false")


def test_rows_that_differ_in_symbols_only_are_matched_with_them() -> None:
    index = index_of(*(f"Close the brackets: {tail}" for tail in ("[ [", "( [", "{ {", "< ( [")))
    assert found(index, "Close the brackets: ( (") is None
    assert found(index, "close the  brackets: ( [") == Contamination(
        "row 1", "close the brackets: ( ["
    )


# --- several targets, streams, determinism ------------------------------------------------------


def test_find_all_reports_every_target_in_one_pass() -> None:
    indexes = {
        "harbour": index_of(HARBOUR),
        "riddles": index_of(*RIDDLES),
        "short": index_of("Which heron nests earliest?"),
        "empty": HeldOutIndex.build([]),
    }
    rows = [[HARBOUR, RIDDLES[1] + "\nWhich heron nests earliest?"], ["nothing of it"], []]
    first, *others = find_all(indexes, rows)
    assert {name: match.test_row for name, match in first.items()} == {
        "harbour": "row 0",
        "riddles": "row 1",
        "short": "row 0",
    }
    assert others == [{}, {}]
    assert list(find_all({}, rows)) == [{}, {}, {}]
    assert list(find_all(indexes, [])) == []


def test_rows_are_found_in_place_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = [[f"filler number {n} is here", HARBOUR if n % 7 == 3 else "nothing"] for n in range(50)]
    index = index_of(HARBOUR)
    whole = list(index.find(pool))
    assert [n for n, match in enumerate(whole) if match] == list(range(3, 50, 7))
    monkeypatch.setattr(decontamination, "_BATCH_WORDS", 30)
    monkeypatch.setattr(decontamination, "_CACHED_WORDS", 5)
    assert list(index.find(pool)) == whole


def test_a_stream_is_read_no_further_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontamination, "_BATCH_WORDS", 30)
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield [HARBOUR]

    matches = index_of(HARBOUR).find(endless())  # type: ignore[arg-type]
    assert next(matches) is not None
    assert len(taken) == 2


def test_a_hash_collision_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every word hashed alike all runs collide; only the same words match."""
    monkeypatch.setattr(decontamination, "_word_hash", lambda word: 7)
    monkeypatch.setattr(decontamination, "_word_hashes", decontamination._WordHashes())
    words = HARBOUR.rstrip(".").split()[:13]
    index = index_of(" ".join(words))
    assert found(index, " ".join(reversed(words))) is None
    assert found(index, " ".join(words)) is not None


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from mona.decontamination import HeldOutIndex;"
        f"print(HeldOutIndex.build([('r', 's', {HARBOUR!r})])._keys.tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{index_of(HARBOUR)._keys.tolist()}\n"}


# --- a naive reference --------------------------------------------------------------------------


def naive(rows: Sequence[tuple[str, str, str]], pool_row: Sequence[str], n: int) -> set[str]:
    """References of all test rows that match, by sets of tuples and strings."""

    def words(text: str) -> tuple[str, ...]:
        return tuple(re.findall(r"\w+", text.lower()))

    def runs(text: str) -> set[object]:
        own = words(text)
        return {own[i : i + n] for i in range(len(own) - n + 1)}

    def too_common(things: dict[str, set[object]]) -> set[object]:
        many: set[object] = set()
        for group in [{subtask} for _, subtask, _ in rows] + [{s for _, s, _ in rows}]:
            members = [reference for reference, subtask, _ in rows if subtask in group]
            counts = Counter(thing for m in members for thing in things.get(m, ()))
            many |= {thing for thing, c in counts.items() if c > max(3, len(members) / 100)}
        return many

    texts = {reference: text for reference, _, text in rows}
    own_runs = {reference: runs(text) for reference, text in texts.items()}
    common = too_common(own_runs)
    pool_runs = set().union(*(runs(text) for text in pool_row))
    matched = {r for r, own in own_runs.items() if (own - common) & pool_runs}

    left = {r: text for r, text in texts.items() if words(text) and not own_runs[r] - common}
    units = [unit for text in pool_row for unit in (text, *text.splitlines())]
    common = too_common({r: {words(text)} for r, text in left.items()})
    matched |= {
        r
        for r, text in left.items()
        if words(text) not in common and any(words(unit) == words(text) for unit in units)
    }
    symbols = {
        r: " ".join(text.lower().split()) for r, text in left.items() if words(text) in common
    }
    common = too_common({r: {text} for r, text in symbols.items()})
    matched |= {
        r
        for r, text in symbols.items()
        if text not in common and any(" ".join(u.lower().split()) == text for u in units)
    }
    return matched


tokens = st.sampled_from(["a", "a", "b", "B", "(", ")", "\n"])
short_texts = st.lists(tokens, max_size=8).map(" ".join)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["s", "t"]), short_texts), max_size=14),
    st.lists(st.lists(short_texts, max_size=3), max_size=4),
    st.integers(1, 4),
)
def test_the_naive_reference_agrees(
    held_out: list[tuple[str, str]], pool: list[list[str]], n: int
) -> None:
    rows = [(f"row {i}", subtask, text) for i, (subtask, text) in enumerate(held_out)]
    matches = list(HeldOutIndex.build(rows, n=n).find(pool))
    assert len(matches) == len(pool)
    for pool_row, match in zip(pool, matches, strict=True):
        expected = naive(rows, pool_row, n)
        assert (match is not None) == bool(expected)
        if match is not None:
            assert match.test_row in expected


# --- real files -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the repository")
def test_every_verbatim_question_of_flan_is_found() -> None:
    """5,657 rows of FLAN's GSM8K file are word for word GSM8K's training questions, and
    the other rows nearly so."""
    train = read_target("gsm8k", [DataFile(SHARED / "targets" / "gsm8k" / "train.jsonl")])
    questions = {row.question.strip() for row in train}
    index = HeldOutIndex.build((str(row.row), row.subtask, row.question) for row in train)
    (path,) = (SHARED / "pools" / "flan_v2_cot_tsv").glob("*gsm8k*")
    pool = [
        [turn.content for turn in messages]
        for row in read_rows(DataFile(path))
        if isinstance(row, RawRow)
        for messages in to_messages(row.data, "auto", "refuse")
    ]
    matches = list(index.find(pool))
    verbatim = [texts[0].strip() in questions for texts in pool]
    assert sum(verbatim) == 5657
    assert all(match for match, same in zip(matches, verbatim, strict=True) if same)
    assert sum(match is not None for match in matches) == len(pool) == 7473


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the repository")
@pytest.mark.parametrize(
    ("reader", "pattern", "generic"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 0),
        ("bbh", "bbh/bbh/*.json", 0),
        ("tydiqa", "tydiqa_goldp/*/*_dev.json", 0),
        # "Which of the following statements is correct?" and the like.
        ("mmlu", "mmlu/test/*.csv", 18),
    ],
)
def test_real_test_rows_find_themselves(reader: str, pattern: str, generic: int) -> None:
    files = [DataFile(path) for path in sorted((SHARED / "targets").glob(pattern))]
    rows = read_target(reader, files)  # type: ignore[arg-type]
    index = HeldOutIndex.build((f"{r.file}:{r.row}", r.subtask, r.question) for r in rows)
    missed = [
        row.question
        for row, match in zip(rows, index.find([row.question] for row in rows), strict=True)
        if match is None
    ]
    assert len(missed) == generic
    assert all(len(words_of(fold(question))) < 13 for question in missed)
