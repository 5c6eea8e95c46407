"""Which pool rows hold held-out test rows.

A pool row is contaminated by a test row when one of its messages holds

- a run of 13 words of the test row; or
- all of its words, in order, where the test row is shorter but still tells itself by them: three
  words with twelve letters, five with ten (`_tells`); or
- the test row as a whole line or message, where it says less than that ("Inflation").

In scripts written without spaces every character is half a word: a run is 26 characters, and ten
are enough to be sought anywhere.

What many test rows of one task have is its boilerplate (`BOILERPLATE_SHARE`), learned in stretches
of half a run. A run counts when at least half of it is the row's own. A row without such a run is
sought by all of its words; a short one that many rows hold, and a longer one that many longer rows
hold, only as a line or message, symbols included. A line that many test rows are, such as "Which
is true?", identifies none.

Words are runs of letters, digits and combining marks after NFKC and case folding. So that a copy
without punctuation is found, a test row counts as it is and with its signs taken out (`_copies`).
What becomes of contaminated rows is not decided here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

N_GRAM_WORDS = 13
# A run, or a whole short row, is boilerplate when it is in more than this share of the rows of
# a subtask or of the whole task, and in more than this many of them.
BOILERPLATE_SHARE = 0.01
BOILERPLATE_ROWS = 3

_BATCH_CHARACTERS = 1 << 17
# Lengths are counted in units: a word has two, a character of a script without spaces one.
_OPENING_UNITS = 6
_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
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
# What a character is to words. A sign is what is none of the others.
_SIGN, _LETTER, _SPACELESS, _MARK, _SPACE, _BREAK = range(6)
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_COPIES = 4  # of each test row: see `_copies`
_HANGUL = (0xAC00, 0xD7A3)
# Joiners, soft hyphens, marks of direction and variation: what a reader doesn't see.
_UNSEEN = re.compile(
    "[\u00ad\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e0fff]"
)


@cache
def _kinds() -> np.ndarray:
    """uint8 [all code points]: what each character is to a word."""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(len(kinds)):
        character = chr(code)
        if character.isalnum():
            kinds[code] = _LETTER
        elif character.isspace():
            kinds[code] = _SPACE
        elif unicodedata.category(character)[0] == "M":
            kinds[code] = _MARK
    for first, last in _SPACELESS_RANGES:
        here = kinds[first : last + 1]
        here[(here == _LETTER) | (here == _MARK)] = _SPACELESS
    kinds[[ord(character) for character in _LINE_BREAKS]] = _BREAK
    return kinds


def fold(text: str) -> str:
    """The text in NFKC, without case and without what is not seen; line breaks stay."""
    if text.isascii():
        return text.lower()
    # Case folding can leave NFKC, so it is restored (Unicode's toNFKC_Casefold, simplified).
    seen = _UNSEEN.sub("", text)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())


def words_of(folded: str) -> list[str]:
    """The words of a folded text, in order."""
    starts, ends, _ = _spans(_kinds_of(folded))
    return [folded[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _copies(text: str) -> list[str]:
    """How copies of a test row may be written: as it is, and without its signs ("don't" as
    "dont"). Those who replace all but letters take combining marks out as well, which cuts the
    words of Hindi or Telugu: so does the third, and the fourth puts spaces there."""
    folded = fold(text)
    codes = _codes(folded)
    kinds = _kinds().take(codes)
    signs, marks = kinds == _SIGN, kinds == _MARK

    def text_of(kept: np.ndarray) -> str:
        encoding = "ascii" if folded.isascii() else "utf-32-le"
        return kept.tobytes().decode(encoding, "surrogatepass")

    without = text_of(codes[~signs])
    if not marks.any():
        return [folded, without, "", ""]
    bare = text_of(codes[~signs & ~marks])
    return [folded, without, bare, text_of(np.where(signs | marks, ord(" "), codes))]


def _codes(text: str) -> np.ndarray:
    """The code point of each character, as uint8 where all are ASCII, else as uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _kinds_of(text: str) -> np.ndarray:
    return _kinds().take(_codes(text))


def _spans(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, ends, spaceless) of the words: int64, int64, bool [words]."""
    inside = kinds == _LETTER
    marks = np.flatnonzero(kinds == _MARK)
    if len(marks):
        # A mark belongs to the word that it follows; behind anything else it is a sign.
        last = np.maximum.accumulate(np.where(kinds == _MARK, 0, np.arange(len(kinds))))
        inside[marks] = inside[last[marks]]
    alone = kinds == _SPACELESS
    begins, finishes = alone | inside, alone | inside
    begins[1:] &= alone[1:] | ~inside[:-1]
    finishes[:-1] &= alone[:-1] | ~inside[1:]
    starts = np.flatnonzero(begins)
    return starts, np.flatnonzero(finishes) + 1, alone[starts]


@lru_cache(maxsize=8)
def _powers(base: int, count: int) -> np.ndarray:
    """uint64 [count]: base ** 0, base ** 1, ..., modulo 2 ** 64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


def _sums(values: np.ndarray) -> np.ndarray:
    """uint64 [len + 1]: running sums from which `_polynomials` takes the hash of any stretch."""
    inverse = _powers(_INVERSE, _rounded(len(values)))[: len(values)]
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * inverse, out=sums[1:])
    return sums


def _polynomials(sums: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """uint64: the hash of the values in each [start, end), wherever it lies."""
    return (sums[ends] - sums[starts]) * _powers(_MULTIPLIER, _rounded(len(sums)))[starts]


def _rounded(count: int) -> int:
    return 1 << max(16, count.bit_length())


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each word's hash, so that all of its bits depend on all of the word's."""
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(29))


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """Pieces of text, folded, joined by line breaks and cut into words.

    Words are named by their numbers; a stretch of words is [start, end).
    """

    text: str
    pieces: np.ndarray  # int64 [pieces + 1]: where in `text` each begins, and its length + 1
    breaks: np.ndarray  # int64: where in `text` the line breaks are, those between pieces too
    starts: np.ndarray  # int64 [words]: where in `text` each begins
    ends: np.ndarray  # int64 [words]: and ends
    units: np.ndarray  # int64 [words + 1]: how many there are before each word
    sums: np.ndarray  # uint64 [words + 1]: see `_sums`

    @classmethod
    def of(cls, pieces: Sequence[str]) -> _Text:
        folded = [fold(piece) for piece in pieces]
        text = "\n".join(folded)
        codes = _codes(text)
        kinds = _kinds().take(codes)
        starts, ends, spaceless = _spans(kinds)
        hashes = _mixed(_polynomials(_sums(codes.astype(np.uint64)), starts, ends))
        lengths = np.fromiter(map(len, folded), np.int64, len(folded))
        return cls(
            text=text,
            pieces=np.append(0, np.cumsum(lengths + 1)),
            breaks=np.flatnonzero(kinds == _BREAK),
            starts=starts,
            ends=ends,
            units=np.append(0, np.cumsum(2 - spaceless)),
            sums=_sums(hashes),
        )

    def hashes(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64: the hash of each stretch of words."""
        return _polynomials(self.sums, starts, ends)

    def runs(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """(starts, ends) of the shortest stretch of at least `units` from each word that has
        one, whatever the pieces."""
        count = int(np.searchsorted(self.units, self.units[-1] - units, "right"))
        starts = np.arange(count)
        if self.units[-1] == 2 * len(self.starts):
            return starts, starts + -(-units // 2)
        return starts, np.searchsorted(self.units, self.units[:count] + units)

    def piece_of(self, words: np.ndarray) -> np.ndarray:
        """The piece that each word is in."""
        return np.searchsorted(self.pieces, self.starts[words], "right") - 1

    def within(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """bool: which stretches lie in one piece."""
        return self.piece_of(starts) == self.piece_of(ends - 1)

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """(starts, ends) of each piece."""
        bounds = np.searchsorted(self.starts, self.pieces)
        return bounds[:-1], bounds[1:]

    def segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The lines and the pieces: where in `text` each begins and ends, and its stretch of
        words."""
        first = np.concatenate([[0], self.breaks + 1, self.pieces[:-1]])
        last = np.concatenate([self.breaks, [len(self.text)], self.pieces[1:] - 1])
        starts = np.searchsorted(self.starts, first)
        return first, last, starts, np.searchsorted(self.starts, last)

    def words(self, start: int, end: int) -> list[str]:
        return words_of(self.text[self.starts[start] : self.ends[end - 1]])

    def symbols(self, first: int, last: int) -> str:
        """A part of the text with its symbols and single spaces."""
        return " ".join(self.text[first:last].split())


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a pool row shares with a test row.

    test_row: the test row's reference; matched: the shared words, normalised.
    """

    test_row: str
    matched: str


@dataclass(frozen=True, slots=True, eq=False)
class _Stretches:
    """Stretches of words of the test rows, one a hash, by ascending hash."""

    hashes: np.ndarray  # uint64
    starts: np.ndarray  # int64
    ends: np.ndarray  # int64

    @classmethod
    def of(cls, text: _Text, starts: np.ndarray, ends: np.ndarray) -> _Stretches:
        """The first of those with the same hash stands for them."""
        hashes = text.hashes(starts, ends)
        order = np.lexsort((starts, hashes))
        kept, first = np.unique(hashes[order], return_index=True)
        return cls(kept, starts[order][first], ends[order][first])


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Test rows sought by all of their words: by how they open, then by each length that a row
    which opens so has."""

    whole: _Stretches
    openings: np.ndarray  # uint64, ascending: hashes
    bounds: np.ndarray  # int64 [openings + 1]: the lengths of each are [bounds[i], bounds[i + 1])
    lengths: np.ndarray  # int64: in words

    @classmethod
    def of(cls, text: _Text, starts: np.ndarray, ends: np.ndarray) -> _Rows:
        opened = np.searchsorted(text.units, text.units[starts] + _OPENING_UNITS)
        hashes, lengths = text.hashes(starts, opened), ends - starts
        fresh = _distinct(hashes, lengths)
        openings, bounds = np.unique(hashes[fresh], return_index=True)
        return cls(
            whole=_Stretches.of(text, starts, ends),
            openings=openings,
            bounds=np.append(bounds, len(fresh)),
            lengths=lengths[fresh],
        )

    def found(
        self, text: _Text, starts: np.ndarray, hashes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(starts, ends, places) of the rows in a text, from its openings (`_Text.runs`) and
        their hashes: by start, then end; some may cross pieces."""
        which, places = _among(self.openings, hashes)
        counts = np.diff(self.bounds)[places]
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(starts[which], counts)
        ends = begins + self.lengths[np.repeat(self.bounds[places], counts) + steps]
        inside = ends <= len(text.starts)
        begins, ends = begins[inside], ends[inside]
        which, places = _among(self.whole.hashes, text.hashes(begins, ends))
        return begins[which], ends[which], places


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutIndex:
    """The test rows of one task, to be looked up by what they share with pool rows.

    Stretches of words are found by 64-bit hash and then compared word by word: a match is never
    a hash collision. One is missed when its hash collides with another's of the index: for a
    million of them there is such a pair with probability 3e-8.
    """

    n: int
    _references: list[str]
    _text: _Text  # each test row as `_copies` writes it, one after the other
    _runs: _Stretches
    _short: _Rows  # sought anywhere
    _lines: _Stretches  # sought as a whole line or message, by their words
    _worded: dict[str, int]  # words joined by spaces -> test row
    _verbatim: dict[str, int]  # folded text, symbols and all -> test row

    @classmethod
    def build(cls, rows: Iterable[tuple[str, str, str]], n: int = N_GRAM_WORDS) -> HeldOutIndex:
        """An index of (reference, subtask, text) rows for runs of `n` words.

        A text without a single word matches nothing.
        """
        references: list[str] = []
        subtasks: list[str] = []
        pieces: list[str] = []
        for reference, subtask, content in rows:
            references.append(reference)
            subtasks.append(subtask)
            pieces += _copies(content)
        text = _Text.of(pieces)
        groups = _groups(subtasks)

        starts, ends = _own_runs(text, 2 * n, groups)
        runs = _Stretches.of(text, starts, ends)
        by_run = text.piece_of(starts)

        starts, ends = text.whole()
        left = ends > starts
        left[by_run] = False
        common = np.zeros(len(pieces), bool)
        telling = left & _tells(text, starts, ends)
        common[telling] = _boilerplate(text, starts[telling], ends[telling], 2 * n, groups)
        sought = telling & ~common
        short = _Rows.of(text, starts[sought], ends[sought])

        # Of rows with nothing to seek anywhere, the text as it is.
        nothing = ((left & ~sought) | (ends == starts)).reshape(-1, _COPIES).all(axis=1)
        alone = _COPIES * np.flatnonzero(nothing & left[::_COPIES])
        texts = {
            i // _COPIES: " ".join(text.words(starts[i], ends[i]))
            for i in alone[~common[alone]].tolist()
        }
        worded = _uncommon(texts, groups)
        symbols = {
            i // _COPIES: text.symbols(text.pieces[i], text.pieces[i + 1] - 1)
            for i in alone.tolist()
            if texts.get(i // _COPIES) not in worded
        }
        return cls(
            n=n,
            _references=references,
            _text=text,
            _runs=runs,
            _short=short,
            _lines=_Stretches.of(text, starts[alone], ends[alone]),
            _worded=worded,
            _verbatim=_uncommon(symbols, groups),
        )

    def find(self, texts: Iterable[Sequence[str]]) -> Iterator[Contamination | None]:
        """For each pool row, given as the texts of its messages, what it shares, if anything."""
        for found in find_all({"": self}, texts):
            yield found.get("")

    def _stretch(self, place: int, stretches: _Stretches) -> tuple[str, list[str]]:
        """(reference, words) of one of the stretches."""
        start, end = stretches.starts[place], stretches.ends[place]
        row = int(self._text.piece_of(start)) // _COPIES
        return self._references[row], self._text.words(start, end)


def find_all(
    indexes: Mapping[str, HeldOutIndex], texts: Iterable[Sequence[str]]
) -> Iterator[dict[str, Contamination]]:
    """For each pool row, given as the texts of its messages: {name of index: what it shares}.

    Streams: a batch of rows is in memory. The match reported is the first run of the row, else
    the first short test row in it, else its first line or message that is a whole test row.
    The indexes are for runs of the same length.
    """
    search = _Search.over(indexes)
    messages: list[str] = []
    counts: list[int] = []
    characters = 0
    for row in texts:
        messages += row
        counts.append(len(row))
        characters += sum(map(len, row))
        if characters >= _BATCH_CHARACTERS:
            yield from search.matches(messages, counts)
            messages, counts, characters = [], [], 0
    yield from search.matches(messages, counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Screen:
    """Which hashes may be among some: most of those that are not are told by one look."""

    may_hold: np.ndarray  # bool [2 ** (64 - shift)]: which leading bits occur
    shift: np.uint64

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> _Screen:
        hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
        # Sixteen places a hash.
        bits = min(26, max(10, (len(hashes) * 16).bit_length()))
        may_hold = np.zeros(1 << bits, bool)
        may_hold[hashes >> np.uint64(64 - bits)] = True
        return cls(may_hold, np.uint64(64 - bits))

    def passed(self, hashes: np.ndarray) -> np.ndarray:
        """int64: the places of those that may be there."""
        return np.flatnonzero(self.may_hold.take(hashes >> self.shift))


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """The indexes, and screens that hold what is in any of them."""

    indexes: Mapping[str, HeldOutIndex]
    n: int
    runs: _Screen
    openings: _Screen

    @classmethod
    def over(cls, indexes: Mapping[str, HeldOutIndex]) -> _Search:
        lengths = {index.n for index in indexes.values()} or {N_GRAM_WORDS}
        if len(lengths) > 1:
            raise ValueError("indexes for runs of several lengths")
        return cls(
            indexes,
            lengths.pop(),
            _Screen.of(index._runs.hashes for index in indexes.values()),
            _Screen.of(index._short.openings for index in indexes.values()),
        )

    def matches(
        self, messages: Sequence[str], counts: Sequence[int]
    ) -> list[dict[str, Contamination]]:
        """For each row, with so many of the messages, what it shares with each index."""
        found: list[dict[str, Contamination]] = [{} for _ in counts]
        if not messages or not self.indexes:
            return found
        text = _Text.of(messages)
        rows = np.repeat(np.arange(len(counts)), counts)
        runs, run_hashes = self._passed(text, 2 * self.n, self.runs)
        opened, opening_hashes = self._passed(text, _OPENING_UNITS, self.openings)
        for name, index in self.indexes.items():
            which, places = _among(index._runs.hashes, run_hashes)
            for stretches, starts, ends, at in (
                (index._runs, *runs[:, which], places),
                (index._short.whole, *index._short.found(text, opened[0], opening_hashes)),
            ):
                inside = text.within(starts, ends)
                starts, ends, at = starts[inside], ends[inside], at[inside]
                of_row = rows[text.piece_of(starts)]
                for row, start, end, place in zip(of_row, starts, ends, at, strict=True):
                    if name not in found[row]:
                        reference, words = index._stretch(place, stretches)
                        if text.words(start, end) == words:
                            found[row][name] = Contamination(reference, " ".join(words))
        self._match_lines(text, rows, found)
        return found

    @staticmethod
    def _passed(text: _Text, units: int, screen: _Screen) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [2, passed], uint64 [passed]): the runs that pass the screen, and their hashes."""
        starts, ends = text.runs(units)
        hashes = text.hashes(starts, ends)
        passed = screen.passed(hashes)
        return np.stack([starts[passed], ends[passed]]), hashes[passed]

    def _match_lines(
        self, text: _Text, rows: np.ndarray, found: list[dict[str, Contamination]]
    ) -> None:
        if not any(len(index._lines.hashes) for index in self.indexes.values()):
            return
        first, last, starts, ends = text.segments()
        hashes = text.hashes(starts, ends)
        for name, index in self.indexes.items():
            for i in _among(index._lines.hashes, hashes)[0]:
                if starts[i] == ends[i]:
                    continue
                row = rows[text.piece_of(starts[i])]
                if name in found[row]:
                    continue
                for table, content in (
                    (index._worded, " ".join(text.words(starts[i], ends[i]))),
                    (index._verbatim, text.symbols(first[i], last[i])),
                ):
                    if content in table:
                        found[row][name] = Contamination(index._references[table[content]], content)
                        break


def _among(keys: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `hashes` are among the ascending `keys`, and where there."""
    if not len(keys):
        return np.zeros(0, int), np.zeros(0, int)
    places = np.searchsorted(keys, hashes)
    places[places == len(keys)] = 0
    which = np.flatnonzero(keys[places] == hashes)
    return which, places[which]


def _distinct(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64: a place of each pair that occurs, by ascending pair."""
    order = np.lexsort((second, first))
    one, two = first[order], second[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (one[1:] != one[:-1]) | (two[1:] != two[:-1])
    return order[fresh]


def _own_runs(text: _Text, units: int, groups: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of the runs that tell a test row: at least half of each is in no boilerplate
    of half a run's length."""
    half = units // 2
    starts, ends = text.runs(half)
    inside = text.within(starts, ends)
    starts, ends = starts[inside], ends[inside]
    hashes = text.hashes(starts, ends)
    common = np.isin(hashes, _in_many_rows(hashes, text.piece_of(starts) // _COPIES, groups))
    edges = np.bincount(starts[common], minlength=len(text.units)) - np.bincount(
        ends[common], minlength=len(text.units)
    )
    shared = np.cumsum(edges)[:-1] > 0
    own = np.append(0, np.cumsum(np.diff(text.units) * ~shared))
    starts, ends = text.runs(units)
    telling = text.within(starts, ends) & (own[ends] - own[starts] >= half)
    return starts[telling], ends[telling]


def _tells(text: _Text, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """bool: which stretches, none empty, are enough to know a test row by inside other text.

    Three words or more, and the more letters the fewer the words: twelve for three words, ten for
    five, seven for eight. Without spaces, ten characters. A syllable of Hangul is two letters.
    """
    codes = _codes(text.text)
    hangul = np.append(0, np.cumsum((codes >= _HANGUL[0]) & (codes <= _HANGUL[1])))
    letters = text.ends - text.starts + hangul[text.ends] - hangul[text.starts]
    before = np.append(0, np.cumsum(letters))
    units = text.units[ends] - text.units[starts]
    return (units >= _OPENING_UNITS) & (2 * (before[ends] - before[starts]) + units >= 30)


def _boilerplate(
    text: _Text, starts: np.ndarray, ends: np.ndarray, units: int, groups: list[np.ndarray]
) -> np.ndarray:
    """bool: which pieces, given as stretches, many test rows hold.

    Of at least `units`, which no text shares by chance, only those that many longer rows hold.
    """
    pieces = _Rows.of(text, starts, ends)
    opened, closed = text.runs(_OPENING_UNITS)
    first, last, places = pieces.found(text, opened, text.hashes(opened, closed))
    inside = text.within(first, last)
    first, last, places = first[inside], last[inside], places[inside]
    holders = text.piece_of(first)
    begins, finishes = text.whole()
    longer = finishes[holders] - begins[holders] > last - first
    counted = longer | (text.units[last] - text.units[first] < units)
    common = _in_many_rows(
        pieces.whole.hashes[places[counted]], holders[counted] // _COPIES, groups
    )
    return np.isin(text.hashes(starts, ends), common)


def _groups(subtasks: Sequence[str]) -> list[np.ndarray]:
    """Two groupings of the rows, as group numbers: by subtask, and the whole task."""
    numbers = {subtask: number for number, subtask in enumerate(sorted(set(subtasks)))}
    by_subtask = np.array([numbers[subtask] for subtask in subtasks], int)
    return [by_subtask, np.zeros(len(subtasks), int)]


def _in_many_rows(hashes: np.ndarray, rows: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """The hashes that are boilerplate: those of more rows than a group may share."""
    fresh = _distinct(hashes, rows)
    hashes, rows = hashes[fresh], rows[fresh]
    common = [np.zeros(0, np.uint64)]
    for group_of_row in groups:
        limits = np.maximum(BOILERPLATE_ROWS, BOILERPLATE_SHARE * np.bincount(group_of_row))
        group = group_of_row[rows]
        order = np.lexsort((group, hashes))
        key, group = hashes[order], group[order]
        first = _distinct(key, group)
        row_counts = np.diff(np.append(first, len(key)))
        common.append(key[first][row_counts > limits[group[first]]])
    return np.concatenate(common)


def _uncommon(texts: Mapping[int, str], groups: list[np.ndarray]) -> dict[str, int]:
    """{text: the first row that is it}, without the texts that many rows are."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts.values()))}
    rows = np.array(list(texts), int)
    of_row = np.array([numbers[text] for text in texts.values()], np.uint64)
    common = set(_in_many_rows(of_row, rows, groups).tolist())
    kept: dict[str, int] = {}
    for row, text in texts.items():
        if numbers[text] not in common:
            kept.setdefault(text, row)
    return kept
