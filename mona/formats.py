"""Rows of known instruction formats as canonical conversations.

How rows come out of files is `mona.containers`; what becomes of conversations is
`mona.pool`. A format is told by a row's own fields, so formats may be mixed within a file.
A field that is null counts as absent. The first rule that fits decides:

1. a list of turns (`messages`, `conversations`, `conversation`): sharegpt where turns say
   `from`, openai otherwise, whatever other fields there are;
2. `prompt` is an object: oasst, a message tree;
3. `input` and `ideal`: evals;
4. `definition` or `Definition`: super_natural_instructions;
5. `instruction`: dolly with `context` and `response`, alpaca otherwise;
6. `question`, `answer` and `rationale`, or three columns without a header: flan_cot;
7. one of the pairs of `PAIRS`: prompt_completion.

Content is kept to the letter. What is joined, is joined with a blank line: an instruction
with its input, a system prompt with its tools, the parts of one message (reasoning and tool
calls included: the assistant wrote them). An empty system prompt is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mona.sample import Message, join_reasoning, split_reasoning

Row = dict[str, Any]

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("inputs", "targets"),
    ("input", "output"),
    ("question", "answer"),
)

_TURN_LISTS = ("messages", "conversations", "conversation")
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
# Few-shot turns of evals are system messages with one of these names.
_EXAMPLE_ROLES = {"example_user": "user", "example_assistant": "assistant"}
_MARKER = re.compile(r"\s*### (Human|Assistant):\s*")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class FormatError(ValueError):
    """A row that can't be read as a conversation; the text says why."""


def detect(row: Row) -> str:
    """The format of `row` by its fields; FormatError where none fits."""
    fields = {key for key, value in row.items() if value is not None}
    turns = _turns(row)
    if turns is not None:
        says_from = bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]
        return "sharegpt" if says_from else "openai"
    if isinstance(row.get("prompt"), dict):
        return "oasst"
    if {"input", "ideal"} <= fields:
        return "evals"
    if fields & {"definition", "Definition"}:
        return "super_natural_instructions"
    if "instruction" in fields:
        return "dolly" if {"context", "response"} <= fields else "alpaca"
    if {"question", "answer", "rationale"} <= fields or fields == {"0", "1", "2"}:
        return "flan_cot"
    if any(set(pair) <= fields for pair in PAIRS):
        return "prompt_completion"
    raise FormatError(f"no known format has the fields {_shown(sorted(fields)[:8])}")


def to_messages(row: Row, format: str, preference: str) -> list[tuple[Message, ...]]:
    """The conversations of a row: one, or none where `preference` leaves the row out.

    `format` is a name of `mona.spec.PoolFormat`; "auto" detects it. Preference rows (`chosen`
    and `rejected`, or a true or false `label`) are refused unless `preference` is "chosen":
    then the chosen answer counts, and a row labelled false gives nothing.

    Raises FormatError with the reason where the row has no readable conversation with at
    least one user and one assistant turn, none of its turns empty.
    """
    settled = _settle({key: value for key, value in row.items() if value is not None}, preference)
    if settled is None:
        return []
    name = detect(settled) if format == "auto" else format
    return [_checked(_CONVERTERS[name](settled))]


def _checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    kept = tuple(turn for turn in messages if turn.role != "system" or turn.content.strip())
    for turn in kept:
        if not turn.content.strip():
            raise FormatError(f"an empty {turn.role} turn")
        if not turn.content.isascii() and _LONE_SURROGATE.search(turn.content):
            raise FormatError(f"half a surrogate pair in a {turn.role} turn")
    roles = {turn.role for turn in kept}
    for role in ("user", "assistant"):
        if role not in roles:
            raise FormatError(f"no {role} turn")
    return kept


def _turns(row: Row) -> list[Any] | None:
    return next((row[key] for key in _TURN_LISTS if isinstance(row.get(key), list)), None)


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    if value is None:
        raise FormatError(f"no field '{field}'")
    raise FormatError(f"field '{field}' is a {type(value).__name__}, not text")


def _optional(row: Row, field: str) -> str:
    return _text(row, field) if row.get(field) is not None else ""


def _shown(value: object) -> str:
    """A value of the data as messages quote it: short, and sound text whatever it holds."""
    return ascii(value)[:200] if _LONE_SURROGATE.search(str(value)) else repr(value)[:200]


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part.strip())


def _items(row: Row, field: str) -> list[Any]:
    """The elements of an optional list."""
    value = row.get(field)
    if value is not None and not isinstance(value, list):
        raise FormatError(f"field '{field}' is a {type(value).__name__}, not a list")
    return value or []


def _as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- preferences --------------------------------------------------------------------------


def _settle(row: Row, preference: str) -> Row | None:
    """A preference row as the plain row of its preferred answer; others as they are."""
    ranked = "chosen" in row and "rejected" in row
    labelled = isinstance(row.get("label"), bool) and (
        _turns(row) is not None or "completion" in row
    )
    if not ranked and not labelled:
        return row
    if preference != "chosen":
        fields = "chosen and rejected" if ranked else "label"
        raise FormatError(f"a preference row ({fields}); its source needs 'preference: chosen'")
    if labelled:
        return row if row["label"] else None
    plain = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    chosen = row["chosen"]
    turns = _turns(row)
    if isinstance(chosen, str):
        if turns is None:
            return {**plain, "output" if "instruction" in row else "completion": chosen}
        chosen = {"from": "gpt", "value": chosen, "role": "assistant", "content": chosen}
    if isinstance(chosen, dict):
        chosen = [chosen]
    if not isinstance(chosen, list):
        raise FormatError(f"field 'chosen' is a {type(chosen).__name__}, not a turn")
    if turns is None and len(chosen) == 1:
        turns = [{"role": "user", "content": _text(row, "prompt")}]
    # A chosen list of several turns repeats the prompt.
    plain = {key: value for key, value in plain.items() if key not in _TURN_LISTS}
    return {**plain, "messages": [*(turns or ()), *chosen] if len(chosen) == 1 else chosen}


# --- formats ------------------------------------------------------------------------------


def _alpaca(row: Row) -> list[Message]:
    answer = next((key for key in ("output", "response") if key in row), None)
    if answer is None:
        raise FormatError("no answer (output or response)")
    messages = [Message("system", _optional(row, "system"))]
    for exchange in _items(row, "history"):
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise FormatError("field 'history' is not a list of pairs")
        question, reply = (_text({"history": part}, "history") for part in exchange)
        messages += [Message("user", question), Message("assistant", reply)]
    prompt = _joined(_text(row, "instruction"), _optional(row, "input"))
    return [*messages, Message("user", prompt), Message("assistant", _text(row, answer))]


def _dolly(row: Row) -> list[Message]:
    prompt = _joined(_text(row, "instruction"), _optional(row, "context"))
    return [Message("user", prompt), Message("assistant", _text(row, "response"))]


def _conversation(row: Row) -> list[Message]:
    """sharegpt (`from`, `value`) and openai (`role`, `content`)."""
    turns = _turns(row)
    if turns is None:
        raise FormatError(f"no list of turns ({', '.join(_TURN_LISTS)})")
    messages = [_turn(turn) for turn in turns]
    preamble = _optional(row, "system")
    # Tools are part of what the model is told before the conversation starts.
    tools = _as_text(row["tools"]) if row.get("tools") else ""
    if messages and messages[0].role == "system":
        preamble = _joined(preamble, messages.pop(0).content)
    system = _joined(preamble, "" if tools.strip() == "[]" else tools)
    return [Message("system", system), *messages]


def _turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise FormatError(f"a turn is a {type(turn).__name__}, not an object")
    says_from = "from" in turn
    role = turn.get("from" if says_from else "role")
    content = turn.get("value" if says_from else "content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = [_part(part) for part in parts]
    texts += [_as_text(call) for call in _items(turn, "tool_calls")]
    content = _joined(*texts) if len(texts) != 1 else texts[0]
    return Message(_role(role), _reasoned(turn, content) if _role(role) == "assistant" else content)


def _reasoned(turn: Row, content: str) -> str:
    """An answer's content, led by the reasoning of its own field where there is one."""
    field = next((field for field in _REASONING if turn.get(field)), None)
    if field is None or split_reasoning(content) is not None:
        return content
    return join_reasoning(_text(turn, field).strip("\n"), content)


def _role(role: object) -> str:
    if not isinstance(role, str) or role not in _ROLES:
        raise FormatError(f"unknown role {_shown(role)}")
    return _ROLES[role]


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind not in _TEXT_PARTS:
        raise FormatError(f"a message part is of type {_shown(kind)}, not text")
    return _as_text(part["value"]) if "value" in part else _text(part, str(kind))


def _prompt_completion(row: Row) -> list[Message]:
    pair = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)
    if pair is None:
        raise FormatError("no prompt with a completion")
    return [*_marked_turns(_text(row, pair[0])), Message("assistant", _text(row, pair[1]))]


def _marked_turns(prompt: str) -> list[Message]:
    """The turns of "### Human: ... ### Assistant: ...", or the prompt as one turn."""
    if not prompt.startswith("### Human:"):
        return [Message("user", prompt)]
    _, *marked = _MARKER.split(prompt)
    roles, contents = marked[::2], marked[1::2]
    # The last marker opens the answer.
    if roles[-1] == "Assistant" and not contents[-1].strip():
        roles, contents = roles[:-1], contents[:-1]
    return [
        Message("user" if role == "Human" else "assistant", content)
        for role, content in zip(roles, contents, strict=True)
    ]


def _flan_cot(row: Row) -> list[Message]:
    names = ("question", "answer", "rationale")
    if "question" in row:
        question, answer, rationale = (_text(row, name) for name in names)
    else:
        # FLAN's files have no header and spell line breaks as \n.
        question, answer, rationale = (
            _text(row, column).replace("\\n", "\n").strip() for column in ("0", "1", "2")
        )
    for name, text in zip(names, (question, answer, rationale), strict=True):
        if not text.strip():
            raise FormatError(f"field '{name}' is empty")
    return [
        Message("user", question),
        Message("assistant", f"{rationale}\nThe answer is {answer}."),
    ]


def _first_text(row: Row, *fields: str) -> str:
    """The first of several fields there is: its text, or the first text of its list."""
    field = next((field for field in fields if field in row), fields[0])
    value = row.get(field)
    if isinstance(value, list):
        if not value:
            raise FormatError(f"field '{field}' is an empty list")
        value = value[0]
    return _text({field: value}, field)


def _super_natural_instructions(row: Row) -> list[Message]:
    definition = _first_text(row, "Definition", "definition")
    prompt = _joined(definition, _first_text(row, "input", "inputs"))
    return [
        Message("user", prompt),
        Message("assistant", _first_text(row, "output", "targets")),
    ]


def _oasst(row: Row) -> list[Message]:
    """The path of best-ranked replies (rank 0 is best, none is last), deleted ones skipped."""
    node = row.get("prompt")
    if not isinstance(node, dict):
        raise FormatError("field 'prompt' is not a message tree")
    if node.get("deleted"):
        raise FormatError("the prompt is deleted")
    path = [_tree_turn(node)]
    while replies := [reply for reply in _items(node, "replies") if _is_kept(reply)]:
        node = min(replies, key=_rank)
        path.append(_tree_turn(node))
    while path and path[-1].role != "assistant":
        path.pop()
    if not path:
        raise FormatError("the tree has no answer")
    return path


def _is_kept(reply: object) -> bool:
    if not isinstance(reply, dict):
        raise FormatError(f"a reply is a {type(reply).__name__}, not an object")
    return not reply.get("deleted")


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")


def _tree_turn(node: Row) -> Message:
    return Message(_role(node.get("role")), _text(node, "text"))


def _evals(row: Row) -> list[Message]:
    """`input` is a text or a list of turns; a prompt of system turns only is the user's."""
    prompt = row.get("input")
    if not isinstance(prompt, list):
        return [
            Message("user", _text(row, "input")),
            Message("assistant", _first_text(row, "ideal")),
        ]
    messages = []
    for turn in prompt:
        message = _turn(turn)
        role = _EXAMPLE_ROLES.get(str(turn.get("name")), message.role)
        messages.append(Message(role, message.content))
    if messages and all(message.role == "system" for message in messages):
        messages[-1] = Message("user", messages[-1].content)
    return [*messages, Message("assistant", _first_text(row, "ideal"))]


_CONVERTERS: dict[str, Callable[[Row], Sequence[Message]]] = {
    "alpaca": _alpaca,
    "sharegpt": _conversation,
    "openai": _conversation,
    "dolly": _dolly,
    "prompt_completion": _prompt_completion,
    "flan_cot": _flan_cot,
    "super_natural_instructions": _super_natural_instructions,
    "oasst": _oasst,
    "evals": _evals,
}
