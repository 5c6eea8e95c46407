"""Rows of preferences: two answers of which one was chosen, or an answer labelled good or bad."""

from __future__ import annotations

from mona.formats._fields import Fields
from mona.formats._turns import TURN_LISTS, is_turns, turns_of
from mona.formats.base import FormatError, text


def settled(row: Fields, preference: str) -> Fields | None:
    """A preference row as the plain row of its preferred answer; others as they are."""
    ranked = "chosen" in row and "rejected" in row
    labelled = isinstance(dict.get(row, "label"), bool) and (
        any(is_turns(dict.get(row, key)) for key in TURN_LISTS) or "completion" in row
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
    turns = turns_of(row)
    listed = turns is None and isinstance(dict.get(row, "prompt"), list)
    if listed:
        turns = row["prompt"]
        plain.pop("prompt")
    if isinstance(chosen, str):
        if turns is None:
            answer = "output" if "instruction" in row else "completion"
            return Fields({**plain, answer: chosen})
        chosen = {"from": "gpt", "value": chosen, "role": "assistant", "content": chosen}
    if isinstance(chosen, dict):
        chosen = [chosen]
    if not isinstance(chosen, list):
        raise FormatError(f"field 'chosen' is a {type(chosen).__name__}, not a turn")
    if turns is None and len(chosen) == 1:
        turns = [{"role": "user", "content": text(row, "prompt")}]
    # A chosen list of several turns repeats the prompt.
    plain = {key: value for key, value in plain.items() if key not in TURN_LISTS}
    # (Unless the prompt is a list beside it: TRL's pairs of conversations.)
    repeats = chosen[: len(turns or ())] == turns if listed else len(chosen) != 1
    whole = chosen if repeats else [*(turns or ()), *chosen]
    return Fields({**plain, "messages": whole}, row.seen)
