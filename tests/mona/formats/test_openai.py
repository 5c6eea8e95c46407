"""mona.formats.openai: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import SPOKEN, Case, is_read

CASES: list[Case] = [
    (
        {
            "messages": [
                {"role": "developer", "content": ""},
                {"role": "user", "content": [{"type": "text", "text": "Look"}, "up"]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "Sky?"},
                        {"type": "tool_call", "value": '{"name": "see"}'},
                    ],
                },
                {"role": "tool", "content": "blue"},
                {"role": "assistant", "content": [{"type": "text", "value": "Blue."}]},
            ],
            "instruction": "not read",
        },
        [
            "user: Look\n\nup",
            'assistant: Sky?\n\n{"name": "see"}',
            "tool: blue",
            "assistant: Blue.",
        ],
    ),
    (
        {
            "conversations": [
                {"role": "user", "content": "Time?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "uhr", "arguments": "{}"}}],
                },
                {"role": "function", "content": "12"},
                {"role": "assistant", "content": "Noon."},
            ]
        },
        [
            "user: Time?",
            'assistant: {"function": {"name": "uhr", "arguments": "{}"}}',
            "tool: 12",
            "assistant: Noon.",
        ],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"messages": SPOKEN}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "openai", expected)
