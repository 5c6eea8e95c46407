"""What every format may have around its turns: a system prompt, context and options; and rows
whose source names the fields itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mona.formats._turns import history
from mona.formats.base import FormatError, Row, joined, optional, refuse_media, text
from mona.sample import Message
from mona.spec import Columns

_SYSTEMS = ("system", "system_prompt")
_LABELLED = re.compile(r"\(?[A-Za-z0-9][).:]")


def surrounded(messages: Sequence[Message], row: Row) -> list[Message]:
    """The turns with the row's system prompt before them, its context and options after the
    first question."""
    made = list(messages)
    leading = made.pop(0).content if made and made[0].role == "system" else ""
    said = [optional(row, field) for field in _SYSTEMS if field in row]
    # A row may say its system prompt twice, as a field and as a turn.
    said = [
        part
        for part in dict.fromkeys(said)
        if part != leading and not leading.startswith(f"{part}\n\n")
    ]
    system = joined(*said, leading) if said else leading
    extra = joined(_passages(row, "context"), _choices(row))
    if extra:
        place = next((i for i, turn in enumerate(made) if turn.role == "user"), None)
        if place is None:
            raise FormatError("no user turn")
        made[place] = Message("user", joined(made[place].content, extra))
    return [Message("system", system), *made]


def _passages(row: Row, field: str) -> str:
    """An optional text, or list of texts."""
    value = row.get(field) if field in row else None
    if not isinstance(value, list):
        return optional(row, field) if field in row else ""
    return joined(*(text({field: part}, field) for part in value))


def _choices(row: Row) -> str:
    """Options of an answer, one a line; a list's get letters where they have no labels."""
    value = row.get("options") if "options" in row else None
    if isinstance(value, dict):
        if any(len(key) > 2 for key in value):
            raise FormatError("field 'options' is an object whose keys are no labels")
        return "\n".join(f"{key}. {_option(part)}" for key, part in value.items())
    if not isinstance(value, list):
        return optional(row, "options") if "options" in row else ""
    texts = [_option(part) for part in value]
    if all(_LABELLED.match(text) for text in texts):
        return "\n".join(texts)
    return "\n".join(f"{_letter(index)}. {text}" for index, text in enumerate(texts))


def _option(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else text({"options": value}, "options")


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def mapped(row: Row, columns: Columns) -> list[Message]:
    """The conversation of a row whose source names its fields."""
    refuse_media(row)
    system = optional(row, columns.system) if columns.system else ""
    messages = [Message("system", system)]
    if columns.history:
        messages += history(row, columns.history)
    prompt = joined(
        *(text(row, field) for field in columns.prompts[:1]),
        *(optional(row, field) for field in columns.prompts[1:]),
    )
    return [*messages, Message("user", prompt), Message("assistant", text(row, columns.answer))]
