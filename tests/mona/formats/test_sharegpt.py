"""mona.formats.sharegpt: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import HEARD, Case, is_read

CASES: list[Case] = [
    (
        {
            "conversations": [
                {"from": "system", "value": "You may cook."},
                {"from": "human", "value": "Soup?"},
                {"from": "function_call", "value": '{"name": "find"}'},
                {"from": "observation", "value": '["leek"]'},
                {"from": "gpt", "value": "Leek soup."},
            ],
            "tools": '[{"name": "find"}]',
        },
        [
            'system: You may cook.\n\n[{"name": "find"}]',
            "user: Soup?",
            'assistant: {"name": "find"}',
            'tool: ["leek"]',
            "assistant: Leek soup.",
        ],
    ),
    (
        {
            "system": "Short.",
            "tools": "[]",
            "messages": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}],
        },
        ["system: Short.", "user: Hi", "assistant: Ho"],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"conversations": HEARD}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "sharegpt", expected)
