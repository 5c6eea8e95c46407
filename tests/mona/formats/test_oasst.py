"""mona.formats.oasst: what is recognised as it, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mona.formats.rows import Case, is_read, tree

CASES: list[Case] = [
    (
        {
            "message_tree_id": "t",
            "prompt": tree(
                "Why?",
                replies=[
                    tree("unranked", "assistant", rank=None),
                    tree("worse", "assistant", rank=1),
                    tree("gone", "assistant", rank=0, deleted=True),
                    tree(
                        "best",
                        "assistant",
                        rank=0.5,
                        replies=[
                            tree("first", replies=[tree("end", "assistant")]),
                            tree("second"),
                        ],
                    ),
                ],
            ),
        },
        ["user: Why?", "assistant: best", "user: first", "assistant: end"],
    ),
    (
        {"prompt": tree("Why?", replies=[tree("So", "assistant", replies=[tree("And?")])])},
        ["user: Why?", "assistant: So"],
    ),
]
# Its question is "Ask." and its answer is "Told.".
PLAIN: dict[str, Any] = {"prompt": tree("Ask.", replies=[tree("Told.", "assistant")])}


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_a_row_is_detected_and_read(row: dict[str, Any], expected: list[str]) -> None:
    is_read(row, "oasst", expected)
