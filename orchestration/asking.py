"""Asking again for what was asked for and not made: by itself, ever more rarely, and with an end.

A condition, or a sensor's run key, asks once: a run that failed then stays failed until something
changes. Here a sensor remembers in its cursor what it asked for and in which state of the inputs.
Waits are counted in the sensor's own looks, not in time: a clock that jumps changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

TRIES = 6


@dataclass(slots=True)
class _Asked:
    state: str
    tries: int = 0
    wait: int = 0


@dataclass(slots=True)
class Asking:
    """What is still wanted, how often it was asked for, and how many looks it waits.

    `patience`: looks before the first request, for what may come about otherwise.
    """

    patience: int = 0
    _asked: dict[str, _Asked] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None, patience: int = 0) -> Asking:
        """From a sensor's cursor; one that can't be read is of another version: begun anew."""
        try:
            raw = json.loads(cursor or "{}")
            return cls(patience, {what: _Asked(**asked) for what, asked in raw.items()})
        except (ValueError, TypeError, AttributeError):
            return cls(patience)

    def cursor(self) -> str:
        """What `read` takes."""
        return json.dumps({what: asdict(asked) for what, asked in self._asked.items()})

    def look(self, wanted: Mapping[str, str], busy: Collection[str]) -> dict[str, int]:
        """One look at what is wanted (-> the state of its inputs): what to ask for now (-> the
        number of the try, from 1). What is `busy` is being made, and waits no further."""
        self._asked = {
            what: known
            if (known := self._asked.get(what)) is not None and known.state == state
            else _Asked(state, wait=self.patience)
            for what, state in wanted.items()
        }
        now = {}
        for what, asked in self._asked.items():
            if what in busy or asked.tries >= TRIES:
                continue
            if asked.wait > 0:
                asked.wait -= 1
                continue
            asked.tries += 1
            asked.wait = 2 ** (asked.tries - 1)
            now[what] = asked.tries
        return now

    def given_up(self) -> list[str]:
        """What was asked for to the end and is wanted still."""
        return sorted(what for what, asked in self._asked.items() if asked.tries >= TRIES)

    def pending(self) -> bool:
        """Whether a later look may ask for something though nothing changes until then."""
        return any(asked.tries < TRIES for asked in self._asked.values())
