"""mona.formats.dolly: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import Case, is_read

CASES: list[Case] = [
    (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "qa"},
        ["user: Who?\n\nAnn came.", "assistant: Ann"],
    ),
    (
        {"instruction": "Who?", "context": "", "response": "Nobody"},
        ["user: Who?", "assistant: Nobody"],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"instruction": "Ask.", "response": "Told."}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "dolly", expected)
