"""mona.formats.alpaca: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import Case, is_read

CASES: list[Case] = [
    (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        ["user: Add.\n\n1 2", "assistant: 3"],
    ),
    (
        {"instruction": "Wave. ", "input": "", "response": " o/\n"},
        ["user: Wave. ", "assistant:  o/\n"],
    ),
    (
        {"instruction": "", "input": "Hum.", "output": "Hm", "category": "x"},
        ["user: Hum.", "assistant: Hm"],
    ),
    (
        {
            "system": "Be kind.",
            "history": [["Hi", "Hello"], ["Well?", "Yes"]],
            "instruction": "Bye",
            "input": None,
            "output": "See you",
        },
        [
            "system: Be kind.",
            "user: Hi",
            "assistant: Hello",
            "user: Well?",
            "assistant: Yes",
            "user: Bye",
            "assistant: See you",
        ],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"instruction": "Ask.", "output": "Told."}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "alpaca", expected)
