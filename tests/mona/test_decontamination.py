"""Matches against test rows, checked by hand and against a naive reference."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def walked(folded: str) -> list[str]:
    """The words of a folded text by looking at one character after the other."""
    words: list[str] = []
    inside = False
    for c in folded:
        spaceless = (
            any(first <= ord(c) <= last for first, last in decontamination._SPACELESS_RANGES)
            and unicodedata.category(c)[0] in "LMN"
        )
        if spaceless or (c.isalnum() and not inside):
            words.append(c)
        elif c.isalnum() or (inside and unicodedata.category(c)[0] == "M"):
            words[-1] += c
        inside = not spaceless and (c.isalnum() or (inside and unicodedata.category(c)[0] == "M"))
    return words


def without_signs(text: str, instead: str = "") -> str:
    return "".join(
        c if c.isalnum() or c.isspace() or unicodedata.category(c)[0] in "MC" else instead
        for c in text
    )


def spaced(text: str) -> str:
    return without_signs(text, " ")


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
        ("Don't PANIC: 3.5 snake_case", ["don", "t", "panic", "3", "5", "snake", "case"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁne ２０", ["fine", "20"]),
        ("e\u0301tude étude", ["étude", "étude"]),
        ("水は H2O です。", ["水", "は", "h2o", "で", "す"]),
        ("Python언어 한국어 문장", ["python언어", "한국어", "문장"]),
        # A Bengali and a Telugu word, each with vowel signs, stay whole.
        ("বাংলা తెలుగు", ["বাংলা", "తెలుగు"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("[ ( < > ) ] ... ____", []),
        # Joiners, soft hyphens and marks of direction can't be seen.
        ("za\u200bp so\u00adft \u202eab\ufeff", ["zap", "soft", "ab"]),
        # A mark that follows no letter is no word.
        ("\u0301 a (\u0301)", ["a"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(fold(text)) == words


@given(st.text())
def test_words_survive_a_second_folding(text: str) -> None:
    assert words_of(fold(fold(text))) == words_of(fold(text))


@given(st.text(max_size=40), st.text(max_size=40))
def test_words_are_those_of_a_walk_over_the_characters(one: str, two: str) -> None:
    text = fold(one + " \u0e01a\u0301水" + two)
    assert words_of(text) == walked(text)


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


def test_twenty_six_characters_make_a_run_in_scripts_without_spaces() -> None:
    question = "河边的老人每天早上都要数一数灰色的小船再去市场买三条鱼和两斤米"
    index = index_of(question)
    assert found(index, f"他说{question[2:28]}吗") == Contamination(
        "row 0", " ".join(question[2:28])
    )
    assert found(index, f"他说{question[2:27]}吗") is None
    # A word counts as two characters: 12 words and 2 characters.
    mixed = "灰色 " + RUN.removesuffix(" wooden")
    assert found(index_of(f"{mixed} oars 小船"), f"x {mixed} y") is not None


# --- short test rows ----------------------------------------------------------------------------

SHORT = "Which heron nests earliest?"
SHORT_WORDS = "which heron nests earliest"


@pytest.mark.parametrize(
    "question",
    [
        SHORT,
        "Wann schläft der Seehund?",
        "Don't the well-known harbour-seals sleep ashore?",
        "متى تعود السفن إلى المرفأ؟",
        "نورس أبيض كبير",
        "조개는 언제 자라는가?",
        "বক পাখিটি কোথায় বাসা বাঁধে?",
        "コウノトリはどの川に巣を作りますか",
        "哪一只灰鹭最早开始筑巢呢？",
        "นกกระสาทำรังเมื่อไร",
        "def tide_table(harbour: str) -> list[float]:",
        "The boat ____ before the tide of __ o'clock.",
    ],
)
@pytest.mark.parametrize(
    "wrapped",
    [
        "{}",
        "Question: {}\nAnswer:",
        "We were asked {} and nobody knew.",
        "Choose the best answer. {}\nA. the first\nB. the second",
    ],
)
def test_a_short_row_is_found_wherever_it_stands(question: str, wrapped: str) -> None:
    index = index_of("Something else is asked here?", question, HARBOUR)
    for text in (question, question.upper(), without_signs(question), spaced(question)):
        match = found(index, "Hello.", "Hello! What is it?", wrapped.format(text), "I see.")
        assert match is not None, text
        assert match.test_row == "row 1"
    # Without one of its words it is another question.
    for cut in (question[: len(question) // 2], question[len(question) // 2 :]):
        assert found(index, wrapped.format(cut)) is None


@pytest.mark.parametrize("instead", [" ", ""])
def test_a_copy_cut_to_letters_loses_no_words_of_indic_scripts(instead: str) -> None:
    """\\w leaves out their vowel signs, and so do many who clean text with it."""
    question = "বক পাখিটি কোথায় বাসা বাঁধে?"
    text = re.sub(r"[^\w\s]", instead, question)
    assert text != question.removesuffix("?")
    assert found(index_of(question), f"Question: {text} Answer:") is not None


def test_a_short_row_may_cross_lines_but_not_messages() -> None:
    index = index_of(SHORT)
    assert found(index, "Which heron\nnests earliest?") == Contamination("row 0", SHORT_WORDS)
    assert found(index, "Which heron nests", "earliest?") is None
    assert found(index, "Some which", "heron nests earliest") is None


@pytest.mark.parametrize(
    "question", ["Tides.", "Grey herons?", "It is so", "1 2 3 4 5", "何時ですか"]
)
def test_a_row_that_says_too_little_has_to_be_a_line_or_message(question: str) -> None:
    index = index_of(question)
    for text in (question.upper(), f"Answer this.\n- {question}!\nThink.", without_signs(question)):
        assert found(index, "Hello.", text) is not None, text
    assert found(index, f"we say {question} and go") is None
    assert found(index, f"Question: {question}") is None


def test_a_row_without_words_matches_nothing() -> None:
    index = index_of("?!", "", "____")
    assert found(index, "?!") is None
    assert found(index, "____") is None
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


def test_a_run_that_is_mostly_boilerplate_does_not_count() -> None:
    """Nine words that all rows begin with are shorter than a run: it takes seven more."""
    opening = "please tell me in a few words of yours"
    index = index_of(*(f"{opening} {riddle}" for riddle in RIDDLES))
    assert found(index, f"{opening} what has a neck and a tail") is None
    assert found(index, f"{opening} what has a neck but never a tail") is None
    assert found(index, f"{opening} what has a neck but never had any tail") is not None


def test_a_japanese_opening_that_rows_share_drops_none_of_them() -> None:
    opening = "次の質問を読んで理由も含めて日本語で簡潔に答えてください。"
    asked = [
        "灯台は何のために海辺に建てられますか。",
        "鮭はどうして川を上るのでしょうか。",
        "潮の満ち引きは何によって起こりますか。",
        "網を直す道具にはどんなものがありますか。",
    ]
    index = index_of(*(opening + question for question in asked))
    others = ["灯台の光はどこまで届きますか。", "鮭は何を食べますか。", "潮風は体に良いですか。"]
    assert [found(index, opening + other) for other in others] == [None] * 3
    for n, question in enumerate(asked):
        match = found(index, "問題：" + opening + question, "はい。")
        assert match is not None
        assert match.test_row == f"row {n}"


def test_the_limit_is_a_share_of_the_rows_in_large_tasks() -> None:
    filler = [f"{HARBOUR} {' '.join(f'w{n}x{i}' for i in range(13))}" for n in range(5)]
    others = [" ".join(f"o{n}x{i}" for i in range(13)) for n in range(495)]
    assert found(index_of(*filler, *others), HARBOUR) is not None
    assert found(index_of(*filler, *others[:-1]), HARBOUR) is None


def test_a_row_repeated_within_one_row_counts_once() -> None:
    assert found(index_of(f"{HARBOUR} {HARBOUR} {HARBOUR} {HARBOUR}"), RUN) is not None


def test_a_row_that_many_longer_rows_begin_with_has_to_be_a_line() -> None:
    index = index_of(PREFIX, *(f"{PREFIX} {riddle}" for riddle in RIDDLES))
    assert found(index, f"{PREFIX} indeed") is None
    match = found(index, f"Hello!\n{PREFIX}")
    assert match is not None
    assert match.test_row == "row 0"


def test_a_short_row_that_others_hold_has_to_be_a_line_with_its_symbols() -> None:
    question = "Which of these statements is true?"
    index = index_of(question, *(f"{riddle}. {question}" for riddle in RIDDLES))
    assert found(index, f"Some say so. {question}") is None
    assert found(index, f"Some say so.\n{question.removesuffix('?')}") is None
    assert found(index, f"Some say so.\n{question}\nA. no") is not None


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


def test_long_rows_that_differ_in_symbols_only_are_found_by_their_words() -> None:
    index = index_of(*(f"{PREFIX} {tail}" for tail in ("[ [", "( [", "{ {", "< ( [")))
    assert found(index, f"Question: {PREFIX.lower()} ( [ (") is not None


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
    monkeypatch.setattr(decontamination, "_BATCH_CHARACTERS", 150)
    assert list(index.find(pool)) == whole


def test_a_stream_is_read_no_further_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontamination, "_BATCH_CHARACTERS", 150)
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
    monkeypatch.setattr(decontamination, "_mixed", lambda hashes: np.full_like(hashes, 7))
    words = HARBOUR.rstrip(".").split()[:13]
    index = index_of(" ".join(words))
    assert found(index, " ".join(reversed(words))) is None
    assert found(index, " ".join(words)) is not None


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from mona.decontamination import HeldOutIndex;"
        f"print(HeldOutIndex.build([('r', 's', {HARBOUR!r})])._runs.hashes.tolist())"
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
    assert outputs == {f"{index_of(HARBOUR)._runs.hashes.tolist()}\n"}


# --- a slow reference ---------------------------------------------------------------------------

Words = tuple[str, ...]


def units(words: Sequence[str]) -> int:
    return sum(1 if word in "水川山" else 2 for word in words)


def stretches(words: Words, wanted: int) -> list[tuple[int, int]]:
    """From each word the shortest stretch of so many units."""
    found = []
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            if units(words[start:end]) >= wanted:
                found.append((start, end))
                break
    return found


def holds(text: Words, part: Words) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def in_many(rows: Sequence[tuple[str, str, str]], things: dict[str, set[Any]]) -> set[Any]:
    """What more rows of a group have than it may share."""
    many: set[Any] = set()
    for group in [{subtask} for _, subtask, _ in rows] + [{s for _, s, _ in rows}]:
        members = [reference for reference, subtask, _ in rows if subtask in group]
        counts = Counter(thing for m in members for thing in things.get(m, ()))
        many |= {thing for thing, c in counts.items() if c > max(3, len(members) / 100)}
    return many


def slow(rows: Sequence[tuple[str, str, str]], pool_row: Sequence[str], n: int) -> set[str]:
    """References of all test rows that match, by tuples and sets."""
    pieces = {
        r: [tuple(walked(fold(text))), tuple(walked(without_signs(fold(text))))]
        for r, _, text in rows
    }
    common = in_many(
        rows,
        {r: {words[i:j] for words in own for i, j in stretches(words, n)}
         for r, own in pieces.items()},
    )  # fmt: skip

    def own_runs(words: Words) -> set[Words]:
        shared = {k for i, j in stretches(words, n) if words[i:j] in common for k in range(i, j)}
        return {
            words[i:j]
            for i, j in stretches(words, 2 * n)
            if units([words[k] for k in range(i, j) if k not in shared]) >= n
        }

    pool = [tuple(walked(fold(text))) for text in pool_row]
    matched = {
        r
        for r, own in pieces.items()
        for words in own
        if any(holds(text, run) for run in own_runs(words) for text in pool)
    }

    left = {r: [w for w in own if w and not own_runs(w)] for r, own in pieces.items()}
    telling = {
        words
        for own in left.values()
        for words in own
        if units(words) >= 6 and 2 * sum(map(len, words)) + units(words) >= 30
    }
    held = {
        r: {
            part
            for words in own
            for part in telling
            if holds(words, part) and (len(words) > len(part) or units(part) < 2 * n)
        }
        for r, own in pieces.items()
    }
    boilerplate = in_many(rows, held)
    sought = telling - boilerplate
    matched |= {
        r for r, own in left.items() if any(holds(t, w) for w in own if w in sought for t in pool)
    }

    texts = {r: text for r, _, text in rows}
    alone = {
        r: own[0]
        for r, own in pieces.items()
        if left[r] and all(w in left[r] and w not in sought for w in own if w) and own[0]
    }
    worded = {r: words for r, words in alone.items() if words not in boilerplate}
    units_of = [unit for text in pool_row for unit in (text, *text.splitlines())]
    common_lines = in_many(rows, {r: {words} for r, words in worded.items()})
    matched |= {
        r
        for r, words in worded.items()
        if words not in common_lines and any(tuple(walked(fold(u))) == words for u in units_of)
    }
    told = set(worded.values()) - common_lines
    symbols = {
        r: " ".join(fold(texts[r]).split())
        for r in alone
        if r not in worded or alone[r] not in told
    }
    common_lines = in_many(rows, {r: {text} for r, text in symbols.items()})
    return matched | {
        r
        for r, text in symbols.items()
        if text not in common_lines and any(" ".join(fold(u).split()) == text for u in units_of)
    }


tokens = st.sampled_from(
    ["a", "tide", "Tide", "lighthouse", "水", "川", "山", "(", "-", "-", "\n", " ", " ", " "]
)
short_texts = st.lists(tokens, max_size=16).map("".join)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["s", "t"]), short_texts), max_size=12),
    st.lists(short_texts, max_size=4),
    st.lists(st.sampled_from(["{}", "a {} tide", "({})", "x\n{}\ny", "水{}川"]), min_size=1),
    st.integers(1, 5),
)
def test_the_slow_reference_agrees(
    held_out: list[tuple[str, str]], pool: list[str], wrappings: list[str], n: int
) -> None:
    """Of rows of their own, and of test rows in others' midst."""
    rows = [(f"row {i}", subtask, text) for i, (subtask, text) in enumerate(held_out)]
    pool_rows = [[text, "a"] for text in pool] + [
        ["a", wrapping.format(text)]
        for (_, _, text), wrapping in zip(rows, itertools.cycle(wrappings), strict=False)
    ]
    matches = list(HeldOutIndex.build(rows, n=n).find(pool_rows))
    assert len(matches) == len(pool_rows)
    for pool_row, match in zip(pool_rows, matches, strict=True):
        expected = slow(rows, pool_row, n)
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
        for row in read_rows(DataFile(path), ())
        if isinstance(row, RawRow)
        for messages in to_messages(row.data, "flan_cot", "refuse")
    ]
    matches = list(index.find(pool))
    verbatim = [texts[0].strip() in questions for texts in pool]
    assert sum(verbatim) == 5657
    assert all(match for match, same in zip(matches, verbatim, strict=True) if same)
    assert sum(match is not None for match in matches) == len(pool) == 7473


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the repository")
@pytest.mark.parametrize(
    ("reader", "pattern"),
    [("mbpp", "mbpp/*.json*"), ("tydiqa", "tydiqa_goldp/*/*_dev.json")],
)
def test_real_test_rows_are_found_in_other_text(reader: str, pattern: str) -> None:
    """`bench/decontamination.py` measures more tasks, in more ways."""
    files = [DataFile(path) for path in sorted((SHARED / "targets").glob(pattern))]
    rows = read_target(reader, files)  # type: ignore[arg-type]
    index = HeldOutIndex.build((f"{r.file}:{r.row}", r.subtask, r.question) for r in rows)
    for wrapped, share in (("{}", 0.995), ("Question: {}\nAnswer:", 0.99)):
        pool = ([wrapped.format(spaced(row.question.lower()))] for row in rows)
        assert sum(match is not None for match in index.find(pool)) >= share * len(rows)
