"""Finding the text of given samples inside other strings: previews, messages, logs.

A string shows a sample when it holds one of its turns whole, or 63 characters of one in a row
(pieces of 32 are compared, case and white space aside). Turns of fewer than 16 characters are
too common to tell from others; who shows them beside a sample's id is found by the id.
"""

from __future__ import annotations

import re

BLANK = "[withdrawn]"  # stands where a text was taken out
_PIECE = 32
_SHORTEST = 16
_PICTURE = re.compile(r"base64,[A-Za-z0-9+/=]+")
# White space, as it is or escaped.
_BLANK = re.compile(r"(?:\s|\\[nrt])+")


class Traces:
    """The texts to look for."""

    def __init__(self) -> None:
        self._pieces: set[str] = set()
        self._whole: dict[int, set[str]] = {}

    def add(self, text: str) -> None:
        """One turn of a sample."""
        plain = _plain(text)
        if len(plain) >= _PIECE:
            starts = [*range(0, len(plain) - _PIECE + 1, _PIECE), len(plain) - _PIECE]
            self._pieces.update(plain[start : start + _PIECE] for start in starts)
        elif len(plain) >= _SHORTEST:
            self._whole.setdefault(len(plain), set()).add(plain)

    def shown_in(self, text: str) -> bool:
        """Whether a string shows one of the texts."""
        if len(text) < _SHORTEST:
            return False
        plain = _plain(_PICTURE.sub("", text))
        return _any_at(plain, _PIECE, self._pieces) or any(
            _any_at(plain, length, texts) for length, texts in self._whole.items()
        )


def _plain(text: str) -> str:
    return _BLANK.sub(" ", text).strip().lower()


def _any_at(text: str, length: int, wanted: set[str]) -> bool:
    return any(text[i : i + length] in wanted for i in range(len(text) - length + 1))
