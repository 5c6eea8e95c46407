"""mona.formats.evals: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import Case, is_read

CASES: list[Case] = [
    (
        {"input": "2+2", "ideal": "4"},
        ["user: 2+2", "assistant: 4"],
    ),
    (
        {
            "input": [
                {"role": "system", "content": "Add."},
                {"role": "system", "name": "example_user", "content": "1+1"},
                {"role": "system", "name": "example_assistant", "content": "2"},
                {"role": "user", "content": "2+2"},
            ],
            "ideal": ["4", "four"],
        },
        ["system: Add.", "user: 1+1", "assistant: 2", "user: 2+2", "assistant: 4"],
    ),
    (
        {
            "input": [
                {"role": "system", "content": "Add."},
                {"role": "system", "content": "2+2"},
            ],
            "ideal": "4",
        },
        ["system: Add.", "user: 2+2", "assistant: 4"],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"input": "Ask.", "ideal": "Told."}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "evals", expected)
