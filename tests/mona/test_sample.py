"""Canonical conversations: ids, reasoning within contents, folded system turns."""

from __future__ import annotations

import hashlib

import pytest

from mona.sample import (
    Message,
    fold_system,
    from_records,
    join_reasoning,
    sample_id,
    split_reasoning,
    to_records,
)

ASKED, ANSWERED = Message("user", "Where?"), Message("assistant", "Here.")


def test_an_id_is_the_hash_of_roles_and_contents() -> None:
    spelled = b'[["user","Where?"],["assistant","Here."]]'
    assert sample_id([ASKED, ANSWERED]) == hashlib.sha256(spelled).hexdigest()[:32]
    quiet = Message("assistant", "Here.", learn=False)
    assert sample_id([ASKED, quiet]) != sample_id([ASKED, ANSWERED])
    assert from_records(to_records([ASKED, quiet])) == (ASKED, quiet)
    assert to_records([ASKED]) == [{"role": "user", "content": "Where?"}]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<think>\nwhy\n</think>\n\nso", ("<think>\n", "why", "\n</think>\n\n", "so")),
        ("<think>why</think>so", ("<think>", "why", "</think>", "so")),
        (" \n<think> a\n\nb </think> so\n", (" \n<think>", " a\n\nb ", "</think>", " so\n")),
        ("<think>\n\n</think>\n\nso", ("<think>\n\n", "", "</think>\n\n", "so")),
        ("<think>a</think>b</think>c", ("<think>", "a", "</think>", "b</think>c")),
        ("why</think>so", None),
        ("so <think>why</think>", None),
        ("<think>why", None),
        ("", None),
    ],
)
def test_a_block_of_reasoning_is_split_off(content: str, parts: tuple[str, ...] | None) -> None:
    assert split_reasoning(content) == parts
    assert parts is None or "".join(parts) == content


def test_canonical_reasoning_comes_apart_again() -> None:
    found = split_reasoning(join_reasoning("why,\n\nthen", " so\n"))
    assert found is not None
    assert (found[1], found[3]) == ("why,\n\nthen", " so\n")


@pytest.mark.parametrize(
    ("given", "folded"),
    [
        ("s:a u:b a:c", "u:a//b a:c"),
        ("s:a s:b u:c a:d", "u:a//b//c a:d"),
        ("s:a a:b u:c a:d", "a:b u:a//c a:d"),
        ("u:a a:b s:c u:d a:e", "u:a a:b u:c//d a:e"),
        ("s:a u:b a:c s:d", "u:a//b a:c s:d"),
        ("s:a", "s:a"),
        ("u:a a:b", "u:a a:b"),
        ("", ""),
    ],
)
def test_system_turns_go_into_the_next_question(given: str, folded: str) -> None:
    assert fold_system(_messages(given)) == tuple(_messages(folded))


def _messages(spelled: str) -> list[Message]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [
        Message(roles[turn[0]], turn[2:].replace("//", "\n\n"))
        for turn in spelled.split(" ")
        if turn
    ]
