"""What a withdrawal did, as it is told to whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """What was removed, and what is left for a person: the withdrawal's name and how many samples
    it took, table -> versions written anew, exported files -> rows taken out, strings blanked in
    Dagster's history, and what can't be reached from here."""

    withdrawal: str
    samples: int
    tables: dict[str, int] = field(default_factory=dict)
    exports: dict[str, int] = field(default_factory=dict)
    history: int = 0
    by_hand: list[str] = field(default_factory=list)
    tainted: list[str] = field(default_factory=list)
