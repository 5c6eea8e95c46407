"""What a file of this folder says of its format, and what formats share: the text of a field,
and the refusals. Turns in a list are `_turns`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mona.sample import Message

Row = dict[str, Any]

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# What says that a row is more than text.
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


@dataclass(frozen=True, slots=True)
class Format:
    """One format, the `KIND` of its file. Rows are given without null fields.

    fits: whether a row is of it, told by the row's fields.
    precedence: "auto" asks the formats from the lowest number to the highest, and the first that
        fits reads the row; those of other packages come after all of ours.
    convert: the turns of a row; FormatError where it has none. What every format may have
        (system prompt, context, options) is put around them, and they are checked, by the caller.
    header: the columns, in order, of its tables where they have no header line.
    """

    fits: Callable[[Row], bool]
    precedence: int
    convert: Callable[[Row], Sequence[Message]]
    header: tuple[str, ...] = ()


class FormatError(ValueError):
    """A row that can't be read as a conversation; the text says why."""


def text(row: Row, field: str) -> str:
    """The text of a field; FormatError where it is absent or no text."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if value is None:
        raise FormatError(f"no field '{field}'")
    raise FormatError(f"field '{field}' is a {type(value).__name__}, not text")


def optional(row: Row, field: str) -> str:
    """As `text`; empty where the field is absent."""
    return text(row, field) if row.get(field) is not None else ""


def first_text(row: Row, *fields: str) -> str:
    """The first of several fields there is: its text, or the first text of its list."""
    field = next((field for field in fields if field in row), fields[0])
    value = row.get(field)
    if isinstance(value, list):
        if not value:
            raise FormatError(f"field '{field}' is an empty list")
        value = value[0]
    return text({field: value}, field)


def items(row: Row, field: str) -> list[Any]:
    """The elements of an optional list."""
    value = row.get(field)
    if value is not None and not isinstance(value, list):
        raise FormatError(f"field '{field}' is a {type(value).__name__}, not a list")
    return value or []


def joined(*parts: str) -> str:
    """The parts that are not blank, with a blank line between them."""
    return "\n\n".join(part for part in parts if part.strip())


def as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise FormatError(f"a value can't be written as JSON: {error}") from None


def without_nulls(value: Any) -> Any:
    """The value without the null fields of its objects."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def refuse_media(row: Row) -> None:
    """FormatError where a row or a turn has images, audio or video."""
    found = next((field for field in _MEDIA if dict.get(row, field)), None)
    if found is not None:
        raise FormatError(f"the row has '{found}'; only text is read")


def shown(value: object) -> str:
    """A value of the data as messages quote it: short, and sound text whatever it holds."""
    return ascii(value)[:200] if LONE_SURROGATE.search(str(value)) else repr(value)[:200]
