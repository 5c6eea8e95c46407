"""Finding samples' text in previews, messages and logs."""

from __future__ import annotations

import json

import pytest

from mona.traces import Traces


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A long question about the orchard and its forty-one trees.", True),
        ("row: a  long question\\nabout the orchard and its forty…", True),
        (json.dumps({"x": "the orchard and its forty-one trees."}), True),
        ("Another question about the orchard.", False),
        ("yes", False),
        ("they said: a shorter answer", True),
    ],
)
def test_text_is_found_whole_cut_and_escaped(text: str, shown: bool) -> None:
    traces = Traces()
    traces.add("A long question about the orchard and its forty-one trees.")
    traces.add("A shorter answer")
    traces.add("yes")
    assert traces.shown_in(text) is shown


def test_fewer_than_sixteen_characters_are_too_common() -> None:
    traces = Traces()
    traces.add("forty-one")
    assert not traces.shown_in("the answer is forty-one, as before")
