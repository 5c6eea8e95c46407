"""What the tests of formats share: a conversation as lines, and one conversation of each form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mona.formats import detect, to_messages

POOLS = Path(__file__).resolve().parents[4] / "shared/data/pools"
needs_pools = pytest.mark.skipif(not POOLS.exists(), reason="needs ../shared/data/pools")

SPOKEN = [{"role": "user", "content": "Ask."}, {"role": "assistant", "content": "Told."}]
HEARD = [{"from": "human", "value": "Ask."}, {"from": "gpt", "value": "Told."}]

# A row and its turns as lines.
Case = tuple[dict[str, Any], list[str]]


def turns(row: dict[str, Any], format: str = "auto", preference: str = "refuse") -> list[str]:
    """The one conversation of a row as "role: content" lines."""
    (messages,) = to_messages(row, format, preference)
    return [f"{message.role}: {message.content}" for message in messages]


def tree(text: str, role: str = "prompter", **fields: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "deleted": False, "replies": [], **fields}


def is_read(row: dict[str, Any], format: str, expected: list[str]) -> None:
    """A row is recognised as of its format, and read by it."""
    assert detect(row) == format
    assert turns(row) == expected
    assert turns(row, format) == expected
