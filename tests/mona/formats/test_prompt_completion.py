"""mona.formats.prompt_completion: what is recognised as it, and how it is read."""

from __future__ import annotations

import collections
from typing import Any

import pytest

from mona.containers import RawRow, read_rows
from mona.files import DataFile
from mona.formats import to_messages
from tests.mona.formats.rows import POOLS, SPOKEN, Case, is_read, needs_pools, turns

CASES: list[Case] = [
    (
        {"prompt": "1+1=\n", "completion": "2<|endoftext|>"},
        ["user: 1+1=\n", "assistant: 2<|endoftext|>"],
    ),
    (
        {"inputs": "a", "targets": "b"},
        ["user: a", "assistant: b"],
    ),
    (
        {"question": "a", "answer": "b"},
        ["user: a", "assistant: b"],
    ),
    (
        {"input": "### Human: Hi there ### Assistant:", "output": "Hello", "prompt": "no"},
        ["user: Hi there", "assistant: Hello"],
    ),
    (
        {"input": "### Human: a\nb ### Assistant: c ### Human: d ### Assistant:", "output": "e"},
        ["user: a\nb", "assistant: c", "user: d", "assistant: e"],
    ),
    (
        {"input": "What does ### Human: mean?", "output": "A marker."},
        ["user: What does ### Human: mean?", "assistant: A marker."],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"prompt": "Ask.", "completion": "Told."}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "prompt_completion", expected)


def test_pairs_of_conversations() -> None:
    pair = {"prompt": SPOKEN[:1], "completion": SPOKEN[1:]}
    assert turns(pair) == ["user: Ask.", "assistant: Told."]
    assert turns({**pair, "completion": "Told."}) == ["user: Ask.", "assistant: Told."]
    assert turns({**pair, "prompt": "Ask."}) == ["user: Ask.", "assistant: Told."]
    ranked = {"prompt": SPOKEN[:1], "chosen": SPOKEN[1:], "rejected": []}
    assert turns(ranked, preference="chosen") == ["user: Ask.", "assistant: Told."]
    longer = {**ranked, "chosen": [*SPOKEN[1:], *SPOKEN]}
    assert len(turns(longer, preference="chosen")) == 4
    assert turns({**ranked, "chosen": SPOKEN}, preference="chosen") == turns(pair)


@needs_pools
def test_real_marked_dialogues_are_split_into_turns() -> None:
    lengths: collections.Counter[int] = collections.Counter()
    for row in read_rows(DataFile(POOLS / "oasst/oa_questions.jsonl")):
        assert isinstance(row, RawRow)
        (messages,) = to_messages(row.data, "auto", "refuse")
        lengths[len(messages)] += 1
    assert lengths == {2: 517, 4: 414, 6: 22}
