"""Rows of known instruction formats as canonical conversations.

How rows come out of files is `mona.containers`; what becomes of conversations is
`mona.pool`. A format is told by a row's own fields, so formats may be mixed within a file.
A field that is null counts as absent, at any depth: columnar files pad objects with nulls.
The first rule that fits decides:

1. a list of turns (`messages`, `conversations`, `conversation`; also as JSON text): sharegpt
   where turns say `from`, openai otherwise, whatever other fields there are;
2. `prompt` is an object: oasst, a message tree;
3. `input` and `ideal`: evals;
4. `definition` or `Definition`: super_natural_instructions;
5. `instruction`: dolly with `context` and `response`, alpaca otherwise;
6. `question`, `answer` and `rationale`: flan_cot (the collection's own files have no header,
   so there the source has to name the format);
7. one of the pairs of `PAIRS`, each a text or a list of turns: prompt_completion.

With every format, `system` and `system_prompt` are a system turn, and `context` and `options`
follow the first question. Other names are for a source's `columns`.

Content is kept to the letter. What is joined, is joined with a blank line: an instruction
with its input, a system prompt with its tools, the parts of one message (reasoning and tool
calls included: the assistant wrote them). An empty system prompt is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mona.sample import Message, join_reasoning, split_reasoning
from mona.spec import Columns

Row = dict[str, Any]

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("inputs", "targets"),
    ("input", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("message_1", "message_2"),
)
# The columns of tables that may have no header, by the format that their source names.
HEADERS = {"flan_cot": ("question", "answer", "rationale")}
UNKNOWN_FIELDS = "no known format has the fields"
COLUMNS_ADVICE = "a source's 'columns: {prompt: ..., answer: ...}' names its own fields"

_TURN_LISTS = ("messages", "conversations", "conversation")
_SYSTEMS = ("system", "system_prompt")
_ANSWERS = ("output", "response", "generation")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
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
# Few-shot turns of evals are system messages with one of these names.
_EXAMPLE_ROLES = {"example_user": "user", "example_assistant": "assistant"}
_MARKER = re.compile(r"\s*### (Human|Assistant):\s*")
_LABELLED = re.compile(r"\(?[A-Za-z0-9][).:]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class FormatError(ValueError):
    """A row that can't be read as a conversation; the text says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a row says. conversation: None where the row is one that `preference` leaves out;
    unread: its fields with text that nothing reads."""

    conversation: tuple[Message, ...] | None
    unread: tuple[str, ...] = ()


def detect(row: Row) -> str:
    """The format of `row` by its fields; FormatError where none fits."""
    fields = {key for key, value in row.items() if value is not None}
    turns = _turns(row)
    if turns is not None:
        says_from = bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]
        return "sharegpt" if says_from else "openai"
    if isinstance(dict.get(row, "prompt"), dict):
        return "oasst"
    if {"input", "ideal"} <= fields:
        return "evals"
    if fields & {"definition", "Definition"}:
        return "super_natural_instructions"
    if "instruction" in fields:
        return "dolly" if {"context", "response"} <= fields else "alpaca"
    if {"question", "answer", "rationale"} <= fields:
        return "flan_cot"
    if any(set(pair) <= fields for pair in PAIRS):
        return "prompt_completion"
    raise FormatError(f"{UNKNOWN_FIELDS} {_shown(sorted(fields)[:8])}")


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
        fields = _Fields(_without_nulls(row))
        if columns is not None:
            messages = _mapped(fields, columns)
            return Reading(_checked(messages), fields.unread())
        settled = _settle(fields, preference)
        if settled is None:
            return Reading(None)
        name = detect(settled) if format == "auto" else format
        messages = _surrounded(_CONVERTERS[name](settled), settled)
        _refuse_media(settled)
        return Reading(_checked(messages), settled.unread())
    except RecursionError:
        raise FormatError("the row is nested too deeply") from None


def to_messages(
    row: Row, format: str, preference: str, columns: Columns | None = None
) -> list[tuple[Message, ...]]:
    """The conversations of a row: one, or none where `preference` leaves the row out. As
    `read`, which also says what was not read."""
    found = read(row, format, preference, columns).conversation
    return [] if found is None else [found]


class _Fields(dict[str, Any]):
    """A row that remembers which of its fields were read."""

    def __init__(self, row: Row, read: Iterable[str] = ()) -> None:
        super().__init__(row)
        self.seen = set(read)

    def __getitem__(self, field: str) -> Any:
        self.seen.add(field)
        return super().__getitem__(field)

    def get(self, field: str, default: Any = None) -> Any:
        self.seen.add(field)
        return super().get(field, default)

    def unread(self) -> tuple[str, ...]:
        """The fields with text in them that were not read, sorted."""
        return tuple(
            sorted(
                _shown_field(field)
                for field, value in self.items()
                if field not in self.seen and isinstance(value, str) and value.strip()
            )
        )


def _without_nulls(value: Any) -> Any:
    """The value without the null fields of its objects."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


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
    if not any(turn.role == "assistant" and turn.learn for turn in kept):
        raise FormatError("every assistant turn is marked as not to learn")
    return kept


def _turns(row: Row) -> list[Any] | None:
    """The list of turns, also where it is written as JSON text."""
    field = next((key for key in _TURN_LISTS if _is_turns(dict.get(row, key))), None)
    return None if field is None else _turn_list(row, field)


def _is_turns(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] == "[")


def _turn_list(row: Row, field: str) -> list[Any]:
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = _without_nulls(json.loads(value))
        except ValueError as error:
            raise FormatError(f"field '{field}' is text that is no JSON: {error}") from None
    if not isinstance(value, list):
        raise FormatError(f"field '{field}' is a {type(value).__name__}, not a list of turns")
    return value


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


def _shown_field(field: str) -> str:
    return field[:60] if not _LONE_SURROGATE.search(field) else ascii(field)[:60]


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
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise FormatError(f"a value can't be written as JSON: {error}") from None


# --- what every format may have -----------------------------------------------------------


def _refuse_media(row: Row) -> None:
    found = next((field for field in _MEDIA if dict.get(row, field)), None)
    if found is not None:
        raise FormatError(f"the row has '{found}'; only text is read")


def _surrounded(messages: Sequence[Message], row: Row) -> list[Message]:
    """The turns with the row's system prompt before them, its context and options after the
    first question."""
    made = list(messages)
    leading = made.pop(0).content if made and made[0].role == "system" else ""
    said = [_optional(row, field) for field in _SYSTEMS if field in row]
    # A row may say its system prompt twice, as a field and as a turn.
    said = [
        part
        for part in dict.fromkeys(said)
        if part != leading and not leading.startswith(f"{part}\n\n")
    ]
    system = _joined(*said, leading) if said else leading
    extra = _joined(_passages(row, "context"), _choices(row))
    if extra:
        place = next((i for i, turn in enumerate(made) if turn.role == "user"), None)
        if place is None:
            raise FormatError("no user turn")
        made[place] = Message("user", _joined(made[place].content, extra))
    return [Message("system", system), *made]


def _passages(row: Row, field: str) -> str:
    """An optional text, or list of texts."""
    value = row.get(field) if field in row else None
    if not isinstance(value, list):
        return _optional(row, field) if field in row else ""
    return _joined(*(_text({field: part}, field) for part in value))


def _choices(row: Row) -> str:
    """Options of an answer, one a line; a list's get letters where they have no labels."""
    value = row.get("options") if "options" in row else None
    if isinstance(value, dict):
        if any(len(key) > 2 for key in value):
            raise FormatError("field 'options' is an object whose keys are no labels")
        return "\n".join(f"{key}. {_option(part)}" for key, part in value.items())
    if not isinstance(value, list):
        return _optional(row, "options") if "options" in row else ""
    texts = [_option(part) for part in value]
    if all(_LABELLED.match(text) for text in texts):
        return "\n".join(texts)
    return "\n".join(f"{_letter(index)}. {text}" for index, text in enumerate(texts))


def _option(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else _text({"options": value}, "options")


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _mapped(row: Row, columns: Columns) -> list[Message]:
    """The conversation of a row whose source names its fields."""
    _refuse_media(row)
    system = _optional(row, columns.system) if columns.system else ""
    messages = [Message("system", system)]
    if columns.history:
        messages += _history(row, columns.history)
    prompt = _joined(
        *(_text(row, field) for field in columns.prompts[:1]),
        *(_optional(row, field) for field in columns.prompts[1:]),
    )
    return [*messages, Message("user", prompt), Message("assistant", _text(row, columns.answer))]


def _history(row: Row, field: str) -> list[Message]:
    """Earlier turns: a list of [question, reply] pairs, or of turns; also as JSON text."""
    value = row.get(field)
    exchanges = _turn_list(row, field) if isinstance(value, str) and value.strip() else value
    if not exchanges:
        return []
    if not isinstance(exchanges, list):
        raise FormatError(f"field '{field}' is a {type(value).__name__}, not a list")
    if isinstance(exchanges[0], dict):
        return [_turn(turn) for turn in exchanges]
    messages = []
    for exchange in exchanges:
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise FormatError(f"field '{field}' is not a list of pairs")
        question, reply = (_text({field: part}, field) for part in exchange)
        messages += [Message("user", question), Message("assistant", reply)]
    return messages


# --- preferences --------------------------------------------------------------------------


def _settle(row: _Fields, preference: str) -> _Fields | None:
    """A preference row as the plain row of its preferred answer; others as they are."""
    ranked = "chosen" in row and "rejected" in row
    labelled = isinstance(dict.get(row, "label"), bool) and (
        any(_is_turns(dict.get(row, key)) for key in _TURN_LISTS) or "completion" in row
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
    listed = turns is None and isinstance(dict.get(row, "prompt"), list)
    if listed:
        turns = row["prompt"]
        plain.pop("prompt")
    if isinstance(chosen, str):
        if turns is None:
            answer = "output" if "instruction" in row else "completion"
            return _Fields({**plain, answer: chosen})
        chosen = {"from": "gpt", "value": chosen, "role": "assistant", "content": chosen}
    if isinstance(chosen, dict):
        chosen = [chosen]
    if not isinstance(chosen, list):
        raise FormatError(f"field 'chosen' is a {type(chosen).__name__}, not a turn")
    if turns is None and len(chosen) == 1:
        turns = [{"role": "user", "content": _text(row, "prompt")}]
    # A chosen list of several turns repeats the prompt.
    plain = {key: value for key, value in plain.items() if key not in _TURN_LISTS}
    # (Unless the prompt is a list beside it: TRL's pairs of conversations.)
    repeats = chosen[: len(turns or ())] == turns if listed else len(chosen) != 1
    whole = chosen if repeats else [*(turns or ()), *chosen]
    return _Fields({**plain, "messages": whole}, row.seen)


# --- formats ------------------------------------------------------------------------------


def _alpaca(row: Row) -> list[Message]:
    answer = next((key for key in _ANSWERS if key in row), None)
    if answer is None:
        raise FormatError("no answer (output or response)")
    prompt = _joined(_text(row, "instruction"), _optional(row, "input"))
    earlier = _history(row, "history") if "history" in row else []
    return [*earlier, Message("user", prompt), Message("assistant", _text(row, answer))]


def _dolly(row: Row) -> list[Message]:
    return [
        Message("user", _text(row, "instruction")),
        Message("assistant", _text(row, "response")),
    ]


def _conversation(row: Row) -> list[Message]:
    """sharegpt (`from`, `value`) and openai (`role`, `content`)."""
    turns = _turns(row)
    if turns is None:
        raise FormatError(f"no list of turns ({', '.join(_TURN_LISTS)})")
    messages = [_turn(turn) for turn in turns]
    # Tools are part of what the model is told before the conversation starts.
    tools = [_as_text(row[field]) for field in ("tools", "functions") if row.get(field)]
    tools = [text for text in tools if text.strip() != "[]"]
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    return [Message("system", _joined(system, *tools)), *messages]


def _turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise FormatError(f"a turn is a {type(turn).__name__}, not an object")
    _refuse_media(turn)
    says_from = "from" in turn
    role = _role(turn.get("from" if says_from else "role"))
    content = turn.get("value" if says_from else "content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = [_part(part) for part in parts]
    texts += [_as_text(call) for call in _calls(turn)]
    learn = role != "assistant" or _is_learned(turn)
    content = _joined(*texts) if len(texts) != 1 else texts[0]
    return Message(role, _reasoned(turn, content) if role == "assistant" else content, learn)


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
            raise FormatError(f"a turn's weight is {_shown(value)}; 0 and 1 are known")
        if value is False or (mark == "weight" and value == 0):
            return False
    return True


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
    return [*_side(row, pair[0], _marked_turns), *_side(row, pair[1], _answer)]


def _side(row: Row, field: str, as_turns: Callable[[str], list[Message]]) -> list[Message]:
    """One side of a pair: a text, or a list of turns."""
    value = row.get(field)
    if isinstance(value, list):
        return [_turn(turn) for turn in value]
    return as_turns(_text(row, field))


def _answer(text: str) -> list[Message]:
    return [Message("assistant", text)]


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
    if "0" not in row:
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
