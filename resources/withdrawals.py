"""The ledger of withdrawals: what was taken down, when and why, kept for good.

A withdrawal is one JSON file under home/withdrawals, named by what was asked for and written
before anything is removed; a second file beside it says that the removal is complete. So a
withdrawal that was cut short is known, and asking twice is asking once. The ledger holds ids
(an id is the digest of its text), never text.

Belongs here: writing and reading the ledger, and what it forbids. Carrying a withdrawal out
is `orchestration.withdrawal`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.pool import Withdrawn
from mona.publishing import write_whole


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """One takedown. Either `ids` were asked for, or every pair of `source`.

    datasets: those whose pools lose a row or a pair. samples and examples: dataset or target
    -> the ids whose text goes. tainted: digest of each record that stands on them -> its
    asset partition. number: its place in the order in which they were opened, from 1; `at` is for
    people, since clocks are set back.
    """

    reason: str
    ids: tuple[str, ...] = ()
    source: str | None = None
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    datasets: tuple[str, ...] = ()
    samples: dict[str, list[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    tainted: dict[str, str] = field(default_factory=dict)
    number: int = 0

    @property
    def name(self) -> str:
        """The same for the same request, whatever the reason given."""
        return fingerprint(ids=sorted(self.ids), source=self.source)[:16]

    @property
    def all_ids(self) -> set[str]:
        """Every id whose text goes from somewhere."""
        found = set(self.ids)
        for listed in (*self.samples.values(), *self.examples.values()):
            found.update(listed)
        return found


class Withdrawals:
    """The ledger under a project's home. Which files there are is looked at each time; each is
    read once, since none is ever changed."""

    def __init__(self, home: str | Path) -> None:
        self._folder = Path(home) / "withdrawals"
        self._known: dict[Path, Withdrawal] = {}

    def all(self) -> list[Withdrawal]:
        """Every withdrawal, oldest first. WorkError for a file that can't be read."""
        found = [self._read(path) for path in sorted(self._folder.glob("*.json"))]
        return sorted(found, key=lambda w: (w.number, w.at, w.name))

    def get(self, name: str) -> Withdrawal | None:
        """The withdrawal of this name, or None."""
        path = self._folder / f"{name}.json"
        return self._read(path) if path.exists() else None

    def pending(self) -> list[Withdrawal]:
        """Those whose removal is at work or was cut short."""
        names = set(self.unfinished())
        return [found for found in self.all() if found.name in names] if names else []

    def unfinished(self) -> list[str]:
        """The names of the pending ones."""
        found = (path.stem for path in self._folder.glob("*.json"))
        return sorted(name for name in found if not self._done(name).exists())

    def open(self, withdrawal: Withdrawal) -> None:
        """Writes a withdrawal: from now on what it names can't come back."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((before.number for before in self.all()), default=0)
        path = self._folder / f"{withdrawal.name}.json"
        _write(path, {**asdict(withdrawal), "number": number})

    def close(self, name: str, report: dict[str, Any]) -> None:
        """Notes that the removal is complete, with what was removed where."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        _write(self._done(name), {"at": at, **report})

    def report(self, name: str) -> dict[str, Any] | None:
        """What a withdrawal was closed with; None where it is not complete. WorkError for a file
        that can't be read."""
        path = self._done(name)
        if not path.exists():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise WorkError(f"{path}: is no report of a withdrawal ({error})") from error

    def forbidden(self) -> Withdrawn:
        """What no pool and no target may hold."""
        everything = self.all()
        return Withdrawn(
            frozenset(key for withdrawal in everything for key in withdrawal.ids),
            tuple(w.source for w in everything if w.source is not None),
        )

    def of_dataset(self, dataset: str) -> list[str]:
        """The names of the withdrawals that took something out of a dataset. A pending one does
        not count: what follows from it must not start while it holds the locks."""
        return sorted(w.name for w in self._complete() if dataset in w.datasets)

    def gone_from(self, dataset: str) -> set[str]:
        """The ids whose text went from a dataset."""
        return {key for w in self.all() for key in w.samples.get(dataset, [])}

    def of_target(self, target: str) -> list[str]:
        """The names of the withdrawals that took something out of a target's rows; as
        `of_dataset`."""
        return sorted(w.name for w in self._complete() if target in w.examples)

    def of_sample(self, sample_id: str) -> list[Withdrawal]:
        """The withdrawals that took a sample out of somewhere, oldest first."""
        return [found for found in self.all() if sample_id in found.all_ids]

    def _complete(self) -> list[Withdrawal]:
        pending = set(self.unfinished())
        return [found for found in self.all() if found.name not in pending]

    def _done(self, name: str) -> Path:
        return self._folder / f"{name}.done"

    def _read(self, path: Path) -> Withdrawal:
        if path not in self._known:
            self._known[path] = _withdrawal(path)
        return self._known[path]


def _withdrawal(path: Path) -> Withdrawal:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Withdrawal(**{**raw, "ids": tuple(raw["ids"]), "datasets": tuple(raw["datasets"])})
    except (ValueError, TypeError, KeyError) as error:
        raise WorkError(f"{path}: is no withdrawal ({error})") from error


def shown_reasons(withdrawals: Iterable[Withdrawal]) -> str:
    """When and why, in one line."""
    return "; ".join(f"withdrawn {w.at[:10]}: {w.reason}" for w in withdrawals)


def _write(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1)
    write_whole(path, text + "\n")
