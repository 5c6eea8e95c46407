"""Rows of known instruction formats as canonical conversations.

How rows come out of files is `mona.containers`; what becomes of conversations is `mona.pool`.
Each format is a file here, called as it is; what such a file says is `base.Format`, and
`mona.registry.FORMATS` finds them. A format is told by a row's own fields, so formats may be
mixed within a file. A field that is null counts as absent, at any depth: columnar files pad
objects with nulls. The first format that fits decides, in the order of their precedence.

With every format, `system` and `system_prompt` are a system turn, and `context` and `options`
follow the first question. Other names are for a source's `columns`.

Content is kept to the letter. What is joined, is joined with a blank line: an instruction
with its input, a system prompt with its tools, the parts of one message (reasoning and tool
calls included: the assistant wrote them). An empty system prompt is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mona.formats._around import mapped, surrounded
from mona.formats._fields import Fields
from mona.formats._preferences import settled
from mona.formats.base import (
    LONE_SURROGATE,
    Format,
    FormatError,
    Row,
    refuse_media,
    shown,
    without_nulls,
)
from mona.registry import FORMATS
from mona.sample import Message
from mona.spec import Columns

__all__ = [
    "COLUMNS_ADVICE",
    "UNKNOWN_FIELDS",
    "FormatError",
    "Reading",
    "Row",
    "detect",
    "header_of",
    "read",
    "to_messages",
]

UNKNOWN_FIELDS = "no known format has the fields"
COLUMNS_ADVICE = "a source's 'columns: {prompt: ..., answer: ...}' names its own fields"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a row says. conversation: None where the row is one that `preference` leaves out;
    unread: its fields with text that nothing reads."""

    conversation: tuple[Message, ...] | None
    unread: tuple[str, ...] = ()


def detect(row: Row) -> str:
    """The format of `row` by its fields; FormatError where none fits."""
    fields = {key: value for key, value in row.items() if value is not None}
    found = next((name for name, kind in _in_order(FORMATS.names()) if kind.fits(fields)), None)
    if found is None:
        raise FormatError(f"{UNKNOWN_FIELDS} {shown(sorted(fields)[:8])}")
    return found


@lru_cache(maxsize=1)
def _in_order(names: tuple[str, ...]) -> tuple[tuple[str, Format], ...]:
    """The formats as "auto" asks them. Those of other packages are asked last: a row that could
    be read is read as before when such a package is installed."""
    kinds = [(name, FORMATS.get(name)) for name in names]
    return tuple(
        sorted(kinds, key=lambda kind: (not FORMATS.is_own(kind[0]), kind[1].precedence, kind[0]))
    )


def header_of(format: str) -> tuple[str, ...] | None:
    """The columns of a format's tables where they have no header line; None where they have, and
    for "auto"."""
    return (FORMATS.get(format).header or None) if format != "auto" else None


def read(row: Row, format: str, preference: str, columns: Columns | None = None) -> Reading:
    """The conversation of a row.

    `format` is a name of `mona.spec.PoolFormat`; "auto" detects it. `columns` says which fields
    to read, and then no others are. Preference rows (`chosen` and `rejected`, or a true or
    false `label`) are refused unless `preference` is "chosen": then the chosen answer counts,
    and a row labelled false gives nothing.

    Raises FormatError with the reason where the row has no readable conversation with at
    least one user and one assistant turn, none of its turns empty; where all its answers are
    marked as not to learn; and where it has images, audio or video.
    """
    try:
        fields = Fields(without_nulls(row))
        if columns is not None:
            messages = mapped(fields, columns)
            return Reading(_checked(messages), fields.unread())
        plain = settled(fields, preference)
        if plain is None:
            return Reading(None)
        name = detect(plain) if format == "auto" else format
        messages = surrounded(FORMATS.get(name).convert(plain), plain)
        refuse_media(plain)
        return Reading(_checked(messages), plain.unread())
    except RecursionError:
        raise FormatError("the row is nested too deeply") from None


def to_messages(
    row: Row, format: str, preference: str, columns: Columns | None = None
) -> list[tuple[Message, ...]]:
    """The conversations of a row: one, or none where `preference` leaves the row out. As
    `read`, which also says what was not read."""
    found = read(row, format, preference, columns).conversation
    return [] if found is None else [found]


def _checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    kept = tuple(turn for turn in messages if turn.role != "system" or turn.content.strip())
    for turn in kept:
        if not turn.content.strip():
            raise FormatError(f"an empty {turn.role} turn")
        if not turn.content.isascii() and LONE_SURROGATE.search(turn.content):
            raise FormatError(f"half a surrogate pair in a {turn.role} turn")
    roles = {turn.role for turn in kept}
    for role in ("user", "assistant"):
        if role not in roles:
            raise FormatError(f"no {role} turn")
    if not any(turn.role == "assistant" and turn.learn for turn in kept):
        raise FormatError("every assistant turn is marked as not to learn")
    return kept
