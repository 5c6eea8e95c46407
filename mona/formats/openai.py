"""OpenAI's messages: a list of turns, each a `role` with its `content`; also as JSON text, and
whatever other fields there are.
"""

from __future__ import annotations

from mona.formats._turns import TURN_LISTS, conversation, is_turns
from mona.formats.base import Format

KIND = Format(
    fits=lambda row: any(is_turns(dict.get(row, field)) for field in TURN_LISTS),
    precedence=11,
    convert=conversation,
)
