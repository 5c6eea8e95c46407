"""A sample: one whole conversation in canonical form, and the id its content gives it.

What a source calls its rows belongs in `mona.formats`; what a model makes of a sample
belongs in `mona.tokens`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
SAMPLE_ID_LENGTH = 32
_REASONING = re.compile(r"(\s*<think>\n*)(.*?)(\n*</think>\n*)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is one of ROLES; `content` is kept to the letter. `learn` is False for
    an assistant turn that its source marks as not to train on.

    >>> import mona
    >>> mona.Message("user", "How many plums?").learn
    True
    """

    role: str
    content: str
    learn: bool = True


def sample_id(messages: Sequence[Message]) -> str:
    """The first 128 bits of SHA-256 over the roles, contents and what is not learned, as 32 hex
    digits.

    Two rows of any sources, formats or files with the same conversation share an id.
    """
    canonical = json.dumps(
        [
            [turn.role, turn.content] if turn.learn else [turn.role, turn.content, "not learned"]
            for turn in messages
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:SAMPLE_ID_LENGTH]


def join_reasoning(reasoning: str, content: str) -> str:
    """An answer's canonical content: its reasoning leads it, as a `<think>` block."""
    return f"<think>\n{reasoning}\n</think>\n\n{content}"


def split_reasoning(content: str) -> tuple[str, str, str, str] | None:
    """A content that begins with a `<think>` block as (the opening, the reasoning, the closing,
    the rest), which joined give it again; None for another content. Line breaks around the
    reasoning and before the rest belong to the opening and the closing."""
    found = _REASONING.fullmatch(content)
    return None if found is None else (found[1], found[2], found[3], found[4])


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with each system turn put in front of the next user turn, a blank line
    between them; one with no user turn after it stays as it is."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    folded: list[Message] = []
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message.role == "system" and i < last:
            waiting.append(message.content)
        elif message.role == "user":
            folded.append(Message("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            folded.append(message)
    return tuple(folded)


def to_records(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the plain dicts that chat templates and Arrow tables take; `learn` is in them
    only where it is False."""
    return [
        {"role": turn.role, "content": turn.content, **({} if turn.learn else {"learn": False})}
        for turn in messages
    ]


def from_records(records: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The inverse of `to_records`; a `learn` that is absent or null is True."""
    return tuple(
        Message(record["role"], record["content"], record.get("learn") is not False)
        for record in records
    )
