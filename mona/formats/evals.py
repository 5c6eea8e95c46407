"""OpenAI evals: `input`, a text or a list of turns, and `ideal`."""

from __future__ import annotations

from mona.formats._turns import as_message
from mona.formats.base import Format, Row, first_text, text
from mona.sample import Message

# Few-shot turns of evals are system messages with one of these names.
_EXAMPLE_ROLES = {"example_user": "user", "example_assistant": "assistant"}


def _convert(row: Row) -> list[Message]:
    """`input` is a text or a list of turns; a prompt of system turns only is the user's."""
    prompt = row.get("input")
    if not isinstance(prompt, list):
        return [
            Message("user", text(row, "input")),
            Message("assistant", first_text(row, "ideal")),
        ]
    messages = []
    for turn in prompt:
        message = as_message(turn)
        role = _EXAMPLE_ROLES.get(str(turn.get("name")), message.role)
        messages.append(Message(role, message.content))
    if messages and all(message.role == "system" for message in messages):
        messages[-1] = Message("user", messages[-1].content)
    return [*messages, Message("assistant", first_text(row, "ideal"))]


KIND = Format(fits=lambda row: row.keys() >= {"input", "ideal"}, precedence=30, convert=_convert)
