"""A sample: one whole conversation in canonical form, and the id its content gives it.

What a source calls its rows belongs in `mona.formats`; what a model makes of a sample
belongs in `mona.tokens`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")
SAMPLE_ID_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is one of ROLES; `content` is kept to the letter."""

    role: str
    content: str


def sample_id(messages: Sequence[Message]) -> str:
    """The first 128 bits of SHA-256 over the roles and contents, as 32 hex digits.

    Two rows of any sources, formats or files with the same conversation share an id.
    """
    canonical = json.dumps(
        [[message.role, message.content] for message in messages],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:SAMPLE_ID_LENGTH]


def to_records(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the plain dicts that chat templates and Arrow tables take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def from_records(records: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    """The inverse of `to_records`."""
    return tuple(Message(record["role"], record["content"]) for record in records)
