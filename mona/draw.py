"""Seeded draws: a thing's place in one follows from the seed and its name, and so depends on
neither the order of the things nor on what else is drawn from."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def lot(seed: int, name: str) -> bytes:
    """SHA-256 of seed and name; the lowest lots are drawn first."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def by_turns(entries: Iterable[tuple[str, str, T]], seed: int) -> list[T]:
    """Every thing of the entries (group, name, thing), in an order whose first n are the draw
    of n: the groups take turns, each with its next thing by lot."""
    groups: dict[str, list[tuple[bytes, T]]] = defaultdict(list)
    for group, name, thing in entries:
        groups[group].append((lot(seed, name), thing))
    turns = [
        (turn, drawn, thing)
        for things in groups.values()
        for turn, (drawn, thing) in enumerate(sorted(things, key=lambda pair: pair[0]))
    ]
    # Within a turn the groups come by lot too: a draw smaller than their number favours none.
    turns.sort(key=lambda entry: entry[:2])
    return [thing for _, _, thing in turns]
