"""mona.formats.flan_cot: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from mona.formats import FormatError
from tests.mona.formats.rows import Case, is_read, turns

CASES: list[Case] = [
    (
        {"question": "q\\n", "answer": "4", "rationale": "2+2"},
        ["user: q\\n", "assistant: 2+2\nThe answer is 4."],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"question": "Ask.", "answer": "Told", "rationale": "So."}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "flan_cot", expected)


def test_a_row_without_column_names_is_read_only_by_its_format() -> None:
    row = {"0": "Ist 7 prime?\\nOptions:\\n- yes\\n- no\\n", "1": "yes", "2": "Two\\nhalves."}
    assert turns(row, "flan_cot") == [
        "user: Ist 7 prime?\nOptions:\n- yes\n- no",
        "assistant: Two\nhalves.\nThe answer is yes.",
    ]
    with pytest.raises(FormatError, match="no known format has the fields"):
        turns(row)
    with pytest.raises(FormatError, match="field 'answer' is empty"):
        turns({**row, "1": ""}, "flan_cot")
