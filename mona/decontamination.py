"""Which pool rows share text with held-out test rows.

A pool row is contaminated by a test row when they share a run of 13 words, or, where the test
row has fewer, when the whole test row is a message or a line of the pool row. Runs that many
test rows of one task share are its boilerplate and don't count (`BOILERPLATE_SHARE`); a test
row left with nothing but boilerplate is matched whole too, and one whose words are those of
many others (rows of brackets, say) by its text with the symbols. What even so is common to
many test rows, such as a bare "Which of these is true?", identifies none and is not matched.

Words are runs of letters, digits, underscores and combining marks after NFKC and case
folding; in scripts written without spaces every character is a word. What becomes of
contaminated rows is not decided here.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

N_GRAM_WORDS = 13
# A run, or a whole short row, is boilerplate when it is in more than this share of the rows of
# a subtask or of the whole task, and in more than this many of them.
BOILERPLATE_SHARE = 0.01
BOILERPLATE_ROWS = 3

_BATCH_WORDS = 1 << 16
_CACHED_WORDS = 1 << 20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Thai, Lao, Burmese, Khmer, kana and Han; Korean is written with spaces.
_SPACELESS_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


def _character_class(codes: Iterable[int], categories: str) -> str:
    """The inside of a regular expression's [...]: those of `codes` in the Unicode categories."""
    kept = np.array([code for code in codes if unicodedata.category(chr(code))[0] in categories])
    runs = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


def _word_pattern() -> re.Pattern[str]:
    spaceless = _character_class(
        (code for first, last in _SPACELESS_RANGES for code in range(first, last + 1)), "LMN"
    )
    # \w leaves out combining marks: it would cut Bengali or Telugu words at each vowel sign.
    # Marks of spaceless scripts may stay in the class, for no word contains their letters.
    marks = _character_class(range(0x10000), "M")
    letter = rf"[^\W{spaceless}]"
    return re.compile(rf"{letter}+(?:[{marks}]+{letter}*)*|[{spaceless}]")


_WORD = _word_pattern()
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


def fold(text: str) -> str:
    """The text in NFKC and without case; line breaks stay."""
    if text.isascii():
        return text.lower()
    # Case folding can leave NFKC, so it is restored (Unicode's toNFKC_Casefold, simplified).
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def words_of(folded: str) -> list[str]:
    """The words of a folded text, in order."""
    return (_ASCII_WORD if folded.isascii() else _WORD).findall(folded)


def _with_symbols(folded: str) -> str:
    return " ".join(folded.split())


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")


class _WordHashes(dict[str, int]):
    """64-bit hashes of words seen before, forgotten when they are too many."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        self[word] = value = _word_hash(word)
        return value


_word_hashes = _WordHashes()


def _run_hashes(words: Sequence[str], n: int) -> np.ndarray:
    """uint64 [max(0, words - n + 1)]: a polynomial over the word hashes of each n-word run."""
    hashes = np.fromiter(map(_word_hashes.__getitem__, words), np.uint64, len(words))
    count = max(0, len(words) - n + 1)
    runs = np.zeros(count, np.uint64)
    for position in range(n):
        runs *= _MULTIPLIER
        runs += hashes[position : position + count]
    return runs


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a pool row shares with a test row.

    test_row: the test row's reference; matched: the shared words, normalised.
    """

    test_row: str
    matched: str


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutIndex:
    """The test rows of one task, to be looked up by what they share with pool rows.

    Runs are found by 64-bit hash and then compared word by word: a match is never a hash
    collision. One is missed when its hash collides with another run's of the index: for a
    million runs there is such a pair with probability 3e-8.
    """

    n: int
    _references: list[str]
    _words: list[str]  # of all test rows, one after the other
    _keys: np.ndarray  # uint64, ascending: hashes of the runs that count
    _rows: np.ndarray  # int64, as _keys: the first test row that has the run
    _starts: np.ndarray  # int64, as _keys: where in _words that row has it
    _may_hold: np.ndarray  # bool [2 ** (64 - _shift)]: which leading bits occur in _keys
    _shift: np.uint64
    _whole: dict[str, int]  # words joined by spaces -> test row
    _verbatim: dict[str, int]  # folded text, symbols and all -> test row
    _whole_lengths: frozenset[int]

    @classmethod
    def build(cls, rows: Iterable[tuple[str, str, str]], n: int = N_GRAM_WORDS) -> HeldOutIndex:
        """An index of (reference, subtask, text) rows for runs of `n` words.

        A text without a single word matches nothing.
        """
        references: list[str] = []
        subtasks: list[str] = []
        folded: list[str] = []
        words: list[str] = []
        bounds = [0]
        for reference, subtask, text in rows:
            references.append(reference)
            subtasks.append(subtask)
            folded.append(fold(text))
            words += words_of(folded[-1])
            bounds.append(len(words))
        groups = _groups(subtasks)

        hashes = _run_hashes(words, n)
        starts, owners = _runs_within(np.array(bounds), n)
        hashes = hashes[starts]
        order = np.lexsort((starts, hashes))
        hashes, starts, owners = hashes[order], starts[order], owners[order]
        # Rows are in the order of starts, so a repeated (run, row) pair is adjacent.
        fresh = np.ones(len(hashes), bool)
        fresh[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        common = _in_many_rows(hashes[fresh], owners[fresh], groups)
        counts = ~np.isin(hashes, common)
        by_run = np.zeros(len(references), bool)
        by_run[owners[counts]] = True

        texts = {
            row: " ".join(words[start:end])
            for row, (start, end) in enumerate(itertools.pairwise(bounds))
            if end > start and not by_run[row]
        }
        whole = _uncommon(texts, groups)
        with_symbols = {
            row: _with_symbols(folded[row]) for row, text in texts.items() if text not in whole
        }
        verbatim = _uncommon(with_symbols, groups)

        keys, first = np.unique(hashes[counts], return_index=True)
        # Sixteen places a key, so that few pool runs pass by chance.
        bits = min(26, max(10, int(len(keys) * 16).bit_length()))
        shift = np.uint64(64 - bits)
        may_hold = np.zeros(1 << bits, bool)
        may_hold[keys >> shift] = True
        return cls(
            n=n,
            _references=references,
            _words=words,
            _keys=keys,
            _rows=owners[counts][first],
            _starts=starts[counts][first],
            _may_hold=may_hold,
            _shift=shift,
            _whole=whole,
            _verbatim=verbatim,
            _whole_lengths=frozenset(
                bounds[row + 1] - bounds[row] for row in (*whole.values(), *verbatim.values())
            ),
        )

    def find(self, texts: Iterable[Sequence[str]]) -> Iterator[Contamination | None]:
        """For each pool row, given as the texts of its messages, what it shares, if anything."""
        for found in find_all({"": self}, texts):
            yield found.get("")


def find_all(
    indexes: Mapping[str, HeldOutIndex], texts: Iterable[Sequence[str]]
) -> Iterator[dict[str, Contamination]]:
    """For each pool row, given as the texts of its messages: {name of index: what it shares}.

    Streams: a batch of rows is in memory. The match reported is the first run of the row, else
    its first line or message that is a whole test row.
    """
    batch = _Batch()
    for row in texts:
        batch.add(row)
        if len(batch.words) >= _BATCH_WORDS:
            yield from batch.matches(indexes)
            batch = _Batch()
    yield from batch.matches(indexes)


@dataclass(slots=True)
class _Batch:
    """The words of some pool rows, and where their messages and lines are."""

    words: list[str] = field(default_factory=list)
    row_count: int = 0
    message_bounds: list[int] = field(default_factory=lambda: [0])
    message_rows: list[int] = field(default_factory=list)
    # Lines, and messages of several lines: row, start and end in words, folded text.
    spans: list[tuple[int, int, int, str]] = field(default_factory=list)

    def add(self, texts: Sequence[str]) -> None:
        row = self.row_count
        for text in texts:
            folded = fold(text)
            start = len(self.words)
            lines = folded.splitlines()
            for line in lines:
                if found := words_of(line):
                    line_start = len(self.words)
                    self.words += found
                    self.spans.append((row, line_start, len(self.words), line))
            if len(lines) > 1:
                self.spans.append((row, start, len(self.words), folded))
            self.message_bounds.append(len(self.words))
            self.message_rows.append(row)
        self.row_count += 1

    def matches(self, indexes: Mapping[str, HeldOutIndex]) -> list[dict[str, Contamination]]:
        found: list[dict[str, Contamination]] = [{} for _ in range(self.row_count)]
        for n in sorted({index.n for index in indexes.values()}):
            hashes = _run_hashes(self.words, n)
            starts, messages = _runs_within(np.array(self.message_bounds), n)
            hashes = hashes[starts]
            rows = np.array(self.message_rows, int)[messages]
            for name, index in indexes.items():
                if index.n == n:
                    self._match_runs(name, index, hashes, starts, rows, found)
        for name, index in indexes.items():
            self._match_whole(name, index, found)
        return found

    def _match_runs(
        self,
        name: str,
        index: HeldOutIndex,
        hashes: np.ndarray,
        starts: np.ndarray,
        rows: np.ndarray,
        found: list[dict[str, Contamination]],
    ) -> None:
        maybe = np.flatnonzero(index._may_hold[hashes >> index._shift])
        places = np.searchsorted(index._keys, hashes[maybe])
        places[places == len(index._keys)] = 0
        hits = index._keys[places] == hashes[maybe] if len(index._keys) else np.zeros(0, bool)
        for at, place in zip(maybe[hits].tolist(), places[hits].tolist(), strict=True):
            row, start, test_start = int(rows[at]), int(starts[at]), int(index._starts[place])
            if name in found[row]:
                continue
            run = self.words[start : start + index.n]
            if run == index._words[test_start : test_start + index.n]:
                reference = index._references[index._rows[place]]
                found[row][name] = Contamination(reference, " ".join(run))

    def _match_whole(
        self, name: str, index: HeldOutIndex, found: list[dict[str, Contamination]]
    ) -> None:
        if not index._whole_lengths:
            return
        for row, start, end, folded in self.spans:
            if end - start not in index._whole_lengths or name in found[row]:
                continue
            for table, text in (
                (index._whole, " ".join(self.words[start:end])),
                (index._verbatim, _with_symbols(folded)),
            ):
                if text in table:
                    found[row][name] = Contamination(index._references[table[text]], text)
                    break


def _runs_within(bounds: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts of the n-word runs that cross no bound, ascending, and the piece each lies in."""
    per_piece = np.maximum(np.diff(bounds) - n + 1, 0)
    pieces = np.repeat(np.arange(len(per_piece)), per_piece)
    before = np.cumsum(per_piece) - per_piece
    starts = np.arange(len(pieces)) - before[pieces] + bounds[pieces]
    return starts, pieces


def _groups(subtasks: Sequence[str]) -> list[np.ndarray]:
    """Two groupings of the rows, as group numbers: by subtask, and the whole task."""
    numbers = {subtask: number for number, subtask in enumerate(sorted(set(subtasks)))}
    by_subtask = np.array([numbers[subtask] for subtask in subtasks], int)
    return [by_subtask, np.zeros(len(subtasks), int)]


def _in_many_rows(hashes: np.ndarray, rows: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """The hashes that are boilerplate; (hash, row) pairs are distinct."""
    common = [np.zeros(0, np.uint64)]
    for group_of_row in groups:
        limits = np.maximum(BOILERPLATE_ROWS, BOILERPLATE_SHARE * np.bincount(group_of_row))
        group = group_of_row[rows]
        order = np.lexsort((group, hashes))
        key, group = hashes[order], group[order]
        changes = np.ones(len(key), bool)
        changes[1:] = (key[1:] != key[:-1]) | (group[1:] != group[:-1])
        first = np.flatnonzero(changes)
        row_counts = np.diff(np.append(first, len(key)))
        common.append(key[first][row_counts > limits[group[first]]])
    return np.concatenate(common)


def _uncommon(texts: Mapping[int, str], groups: list[np.ndarray]) -> dict[str, int]:
    """{text: the first row that is it}, without the texts that many rows are."""
    rows = np.array(list(texts), int)
    hashes = np.array([_word_hash(text) for text in texts.values()], np.uint64)
    uncommon = ~np.isin(hashes, _in_many_rows(hashes, rows, groups))
    kept: dict[str, int] = {}
    for row in rows[uncommon].tolist():
        kept.setdefault(texts[row], row)
    return kept
