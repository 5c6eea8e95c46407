"""Which pool rows share text with held-out test rows.

A pool row is contaminated by a test row when they share a run of 13 words, or, where the test
row has fewer, when the whole test row is a message or a line of the pool row. Runs that many
test rows of one task share are its boilerplate and don't count (`BOILERPLATE_SHARE`); a test
row left with nothing but boilerplate is matched whole too.

Words are runs of letters, digits, underscores and combining marks after NFKC and case
folding; in scripts written without spaces every character is a word. What becomes of
contaminated rows is not decided here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
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
# Han, kana, Thai, Lao, Burmese and Khmer; Korean is written with spaces.
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


def _word_pattern() -> re.Pattern[str]:
    spaceless = "".join(f"{chr(first)}-{chr(last)}" for first, last in _SPACELESS_RANGES)
    # \w leaves out combining marks, which would cut Bengali or Telugu words at every vowel sign.
    codes = np.array(
        [code for code in range(0x10000) if unicodedata.category(chr(code)).startswith("M")]
    )
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    marks = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    letter = rf"(?![{spaceless}])[\w{marks}]"
    return re.compile(rf"(?=[\w{marks}])[{spaceless}]|(?:{letter})+")


_WORD = _word_pattern()
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
