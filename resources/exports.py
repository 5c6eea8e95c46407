"""The ledger of exports: which files were written from which subset, and their digests.

An exported file is the user's, wherever it lies; the ledger is how a later withdrawal finds it
and sees whether it is still as written. Writing the formats is `mona.export`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mona.errors import WorkError
from mona.files import file_digest, write_whole


@dataclass(frozen=True, slots=True)
class Export:
    """One export: the record of the subset it was made from, its dataset, the samples in it,
    and path -> SHA-256."""

    record: str
    dataset: str
    sample_ids: list[str]
    files: dict[str, str]


class Exports:
    """The ledger under a project's home: one JSON file for the last export to a path."""

    def __init__(self, home: str | Path) -> None:
        self._folder = Path(home) / "exports"

    def remember(
        self, record: str, dataset: str, sample_ids: Sequence[str], files: Sequence[Path]
    ) -> None:
        """Notes files as they are now."""
        written = {str(path.resolve()): file_digest(path) for path in files}
        name = hashlib.sha256(min(written).encode()).hexdigest()[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        export = Export(record, dataset, list(sample_ids), written)
        body = json.dumps(asdict(export), ensure_ascii=False, indent=1)
        write_whole(self._folder / f"{name}.json", body)

    def all(self) -> list[Export]:
        """Every export noted. WorkError for a file that can't be read."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(Export(**json.loads(path.read_text(encoding="utf-8"))))
            except (ValueError, TypeError) as error:
                raise WorkError(f"{path}: is no note of an export ({error})") from error
        return found
