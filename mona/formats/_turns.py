"""Turns in a list, however a format calls them: `from` and `value`, or `role` and `content`."""

from __future__ import annotations

import json
from typing import Any

from mona.formats.base import (
    FormatError,
    Row,
    as_text,
    joined,
    refuse_media,
    shown,
    text,
    without_nulls,
)
from mona.sample import Message, join_reasoning, split_reasoning

TURN_LISTS = ("messages", "conversations", "conversation")
# What says of a turn whether it is learned.
_LEARN_MARKS = ("weight", "train", "training", "loss")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
# What sources call the reasoning of an answer.
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "reasoning", "tool_call")


def turns_of(row: Row) -> list[Any] | None:
    """A row's list of turns, also where it is written as JSON text; None where it has none.
    FormatError where it is no JSON."""
    field = next((key for key in TURN_LISTS if is_turns(dict.get(row, key))), None)
    return None if field is None else turn_list(row, field)


def is_turns(value: object) -> bool:
    """Whether a field looks like a list of turns, as such or as JSON text."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] == "[")


def turn_list(row: Row, field: str) -> list[Any]:
    """The list of turns of a field."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = without_nulls(json.loads(value))
        except ValueError as error:
            raise FormatError(f"field '{field}' is text that is no JSON: {error}") from None
    if not isinstance(value, list):
        raise FormatError(f"field '{field}' is a {type(value).__name__}, not a list of turns")
    return value


def conversation(row: Row) -> list[Message]:
    """sharegpt (`from`, `value`) and openai (`role`, `content`)."""
    turns = turns_of(row)
    if turns is None:
        raise FormatError(f"no list of turns ({', '.join(TURN_LISTS)})")
    messages = [as_message(turn) for turn in turns]
    # Tools are part of what the model is told before the conversation starts.
    tools = [as_text(row[field]) for field in ("tools", "functions") if row.get(field)]
    tools = [text for text in tools if text.strip() != "[]"]
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    return [Message("system", joined(system, *tools)), *messages]


def history(row: Row, field: str) -> list[Message]:
    """Earlier turns: a list of [question, reply] pairs, or of turns; also as JSON text."""
    value = row.get(field)
    exchanges = turn_list(row, field) if isinstance(value, str) and value.strip() else value
    if not exchanges:
        return []
    if not isinstance(exchanges, list):
        raise FormatError(f"field '{field}' is a {type(value).__name__}, not a list")
    if isinstance(exchanges[0], dict):
        return [as_message(turn) for turn in exchanges]
    messages = []
    for exchange in exchanges:
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise FormatError(f"field '{field}' is not a list of pairs")
        question, reply = (text({field: part}, field) for part in exchange)
        messages += [Message("user", question), Message("assistant", reply)]
    return messages


def as_message(turn: object) -> Message:
    """One turn of a list as a message."""
    if not isinstance(turn, dict):
        raise FormatError(f"a turn is a {type(turn).__name__}, not an object")
    refuse_media(turn)
    says_from = "from" in turn
    role = role_of(turn.get("from" if says_from else "role"))
    content = turn.get("value" if says_from else "content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = [_part(part) for part in parts]
    texts += [as_text(call) for call in _calls(turn)]
    learn = role != "assistant" or _is_learned(turn)
    content = joined(*texts) if len(texts) != 1 else texts[0]
    return Message(role, _reasoned(turn, content) if role == "assistant" else content, learn)


def role_of(role: object) -> str:
    """What a source calls a role, as one of `mona.sample`."""
    if not isinstance(role, str) or role not in _ROLES:
        raise FormatError(f"unknown role {shown(role)}")
    return _ROLES[role]


def _calls(turn: Row) -> list[Any]:
    """What an assistant's turn calls: its tool calls, or its function call."""
    calls = turn.get("tool_calls")
    calls = [] if not calls or calls == "[]" else [calls] if isinstance(calls, str) else calls
    if not isinstance(calls, list):
        raise FormatError(f"field 'tool_calls' is a {type(calls).__name__}, not a list")
    return [*calls, *([turn["function_call"]] if turn.get("function_call") else [])]


def _is_learned(turn: Row) -> bool:
    """Whether the source lets an assistant turn be learned: false, or a weight of 0, says no."""
    for mark in _LEARN_MARKS:
        value = turn.get(mark)
        if mark == "weight" and value is not None and value not in (0, 1):
            raise FormatError(f"a turn's weight is {shown(value)}; 0 and 1 are known")
        if value is False or (mark == "weight" and value == 0):
            return False
    return True


def _reasoned(turn: Row, content: str) -> str:
    """An answer's content, led by the reasoning of its own field where there is one."""
    field = next((field for field in _REASONING if turn.get(field)), None)
    if field is None or split_reasoning(content) is not None:
        return content
    return join_reasoning(text(turn, field).strip("\n"), content)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind not in _TEXT_PARTS:
        raise FormatError(f"a message part is of type {shown(kind)}, not text")
    return as_text(part["value"]) if "value" in part else text(part, str(kind))
