"""Characters that act on what shows them: escape sequences move a cursor or set a title, others
reorder the text beside them. What makes of Markdown more than text is `mona.cards`.
"""

from __future__ import annotations

import re

# C0 and C1, marks that reorder text, line separators, and halves of a character.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """One line without control characters: white space becomes spaces, the others escapes."""
    return escaped(" ".join(re.split("[\n\r\t]", text)))


def escaped(text: str, kept: str = "") -> str:
    """The text with the control characters that are not `kept` as JSON writes them, so that JSON
    stays what it is."""
    return CONTROL.sub(
        lambda match: match.group() if match.group() in kept else f"\\u{ord(match.group()):04x}",
        text,
    )
