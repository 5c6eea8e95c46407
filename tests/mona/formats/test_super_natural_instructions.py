"""mona.formats.super_natural_instructions: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import Case, is_read

CASES: list[Case] = [
    (
        {"Definition": ["Reverse.", "other"], "input": "ab", "output": ["ba", "BA"], "id": "1"},
        ["user: Reverse.\n\nab", "assistant: ba"],
    ),
    (
        {"definition": "Reverse.", "inputs": "ab", "targets": "ba"},
        ["user: Reverse.\n\nab", "assistant: ba"],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"definition": "Ask.", "input": " ", "output": "Told."}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "super_natural_instructions", expected)
