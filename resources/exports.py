"""The ledger of exports: which files are written from which subset, what each is, and its digest.

An exported file is the user's, wherever it lies; the ledger is how a later withdrawal finds it
and sees whether it is still as written. A note is made before the first byte is written and
closed after the last, so that a file whose writing was cut short is named too. Writing the
formats is `mona.exports`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from mona.errors import WorkError
from mona.exports import FileKind, kind_by_content
from mona.files import file_digest
from mona.publishing import write_whole


@dataclass(frozen=True, slots=True)
class ExportFile:
    """One file: what it was written as, and its SHA-256; None while it is being written."""

    kind: FileKind
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Export:
    """One export: the record of the subset it was made from, its dataset, the samples in it, and
    path -> file. `finished` is False where its writing was cut short."""

    record: str
    dataset: str
    sample_ids: list[str]
    files: dict[str, ExportFile]
    finished: bool = True


class Exports:
    """The ledger under a project's home: one JSON file for the last export to a path."""

    def __init__(self, home: str | Path) -> None:
        self._folder = Path(home) / "exports"

    @contextmanager
    def writing(
        self, record: str, dataset: str, sample_ids: Sequence[str], files: Mapping[Path, FileKind]
    ) -> Iterator[None]:
        """Notes `files` while the block writes them, and as they are when it ends well. After an
        error that left every file as it was, so is the ledger."""
        made = Export(
            record,
            dataset,
            list(sample_ids),
            {str(path.resolve()): ExportFile(kind, None) for path, kind in files.items()},
            finished=False,
        )
        begun = self._path(made, "begun")
        before = [_digest(path) for path in files]
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(begun, made)
        try:
            yield
        except BaseException:
            if [_digest(path) for path in files] == before:
                begun.unlink()
            raise
        self.settle(made, made.sample_ids)

    def settle(self, export: Export, sample_ids: Sequence[str]) -> None:
        """Notes an export's files as they are now, with these samples in them; those that are
        not there are noted no more."""
        now = {
            path: ExportFile(file.kind, file_digest(Path(path)))
            for path, file in export.files.items()
            if Path(path).is_file()
        }
        if now:
            done = Export(export.record, export.dataset, list(sample_ids), now)
            _write(self._path(export, "json"), done)
        self._path(export, "begun").unlink(missing_ok=True)

    def all(self) -> tuple[list[Export], list[str]]:
        """Every export noted, those cut short first, and why a note can't be read, for each."""
        found, unreadable = [], []
        for path in [*sorted(self._folder.glob("*.begun")), *sorted(self._folder.glob("*.json"))]:
            try:
                found.append(_read(path))
            except WorkError as error:
                unreadable.append(str(error))
        return found, unreadable

    def _path(self, export: Export, suffix: str) -> Path:
        name = hashlib.sha256(min(export.files).encode()).hexdigest()[:32]
        return self._folder / f"{name}.{suffix}"


def _write(path: Path, export: Export) -> None:
    write_whole(path, json.dumps(asdict(export), ensure_ascii=False, indent=1))


def _read(path: Path) -> Export:
    """An export as noted. WorkError for a file that is no note of one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = {name: _file(Path(name), noted) for name, noted in raw.pop("files").items()}
        if not files:
            raise ValueError("it names no file")
        return Export(**raw, files=files)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise WorkError(f"{path}: is no note of an export ({error})") from error


def _file(path: Path, noted: Any) -> ExportFile:
    if isinstance(noted, str):  # from before the ledger said what a file is
        kind = kind_by_content(path) if path.is_file() else "settings"
        return ExportFile(kind, noted)
    if noted["kind"] not in get_args(FileKind):
        raise ValueError(f"'{noted['kind']}' is no kind of file")
    return ExportFile(cast(FileKind, noted["kind"]), noted["sha256"])


def _digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None
