"""Provenance records: what each materialisation read and made, as files that name each other.

A record is a JSON file named by its own SHA-256; its `inputs` are the digests of the records
it read. So a record stands for everything above it, down to the source files, and none can be
changed unseen. This is kept beside Dagster's event log, not taken from it: `mona lineage
verify` compares the two.

A withdrawal takes rows out of tables that records have sealed: an amendment beside the record
then says what the tables are now.

Belongs here: writing, reading and pinning records, and sealing tables and files. Walking them
to answer a question is `orchestration.lineage`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import dagster as dg

from mona.content import ContentDigest
from mona.errors import WorkError
from mona.files import file_digest, stream_digest
from mona.publishing import write_whole
from resources.asset_partition import AssetPartition
from resources.store import Store
from resources.tables import kind_of
from resources.withdrawals import Withdrawals

LIBRARIES = ("torch", "transformers", "sae-lens", "trl", "peft", "lm-eval", "lancedb", "pylance")


@dataclass(frozen=True, slots=True)
class TableSeal:
    """One version of a table: its rows, the digest of their values, and of every file that
    holds them (path under the table's folder -> SHA-256)."""

    version: int
    rows: int
    content: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """What one asset partition was made from and what was made.

    inputs: asset partition -> digest of the record it was read at; observed entries and
    their versions are in `entries`. files: path under home -> SHA-256.
    """

    asset: str
    data_version: str
    inputs: dict[str, str] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    tables: dict[str, TableSeal] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """WorkError for an `asset` that is none."""
        AssetPartition.parse(self.asset)

    @property
    def kind(self) -> str:
        """The kind of its asset: raw_pool, selection."""
        return AssetPartition.parse(self.asset).kind


@dataclass(frozen=True, slots=True)
class AmendmentStep:
    """One table of a record, written anew by one withdrawal.

    gone: the key (sample id; source, where rows have no id) of every row that left. removed: of
    pool rows, sample id -> row digest, from which the recorded data version can still be
    computed. previous: the digest of the step before; of the first one, the record's.
    """

    withdrawal: str
    table: str
    seal: TableSeal
    gone: list[str]
    removed: dict[str, str]
    previous: str

    @property
    def digest(self) -> str:
        """What the next step and the closed withdrawal name it by."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()


@dataclass(frozen=True, slots=True)
class Amendment:
    """What withdrawals changed after a record was written: its tables as they are now, what is
    left of the pool rows that are gone, and the steps that led there (none in the form that
    stores of before have)."""

    tables: dict[str, TableSeal]
    removed: dict[str, str]
    withdrawals: list[str]
    steps: list[AmendmentStep] = field(default_factory=list)


class Records(dg.ConfigurableResource):
    """Records under `home`, and the ledger of what was withdrawn from them. A command has one of
    it and hands it on: each record is read once."""

    home: str

    @cached_property
    def _folder(self) -> Path:
        folder = Path(self.home) / "records"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def ledger(self) -> Withdrawals:
        """The withdrawals of the same home."""
        return Withdrawals(self.home)

    @cached_property
    def _known(self) -> dict[str, Record]:
        """Records that were read, by digest: what a digest names is never another."""
        return {}

    def current(self, asset: str) -> str | None:
        """The digest of an asset partition's newest record, or None."""
        pointer = self._folder / "current" / AssetPartition.parse(asset).file_name
        return pointer.read_text(encoding="ascii") if pointer.exists() else None

    def publish(self, record: Record) -> str:
        """Writes a record, makes it its asset partition's current one, returns its digest."""
        body = _canonical({**asdict(record), "libraries": _libraries()})
        digest = hashlib.sha256(body).hexdigest()
        write_whole(self._folder / f"{digest}.json", body)
        pointer = self._folder / "current" / AssetPartition.parse(record.asset).file_name
        pointer.parent.mkdir(exist_ok=True)
        write_whole(pointer, digest.encode("ascii"))
        return digest

    def body(self, digest: str) -> bytes:
        """A record's bytes as stored. WorkError when there is none."""
        path = self._folder / f"{digest}.json"
        if not path.is_file():
            raise WorkError(f"record {digest} is missing")
        return path.read_bytes()

    def get(self, digest: str) -> Record:
        """The record of this digest, its tables as they are after withdrawals. WorkError when
        it is missing or is not what it was."""
        record = self.as_published(digest)
        amendment = self.amendment(digest)
        return replace(record, tables=record.tables | amendment.tables) if amendment else record

    def amendment(self, digest: str) -> Amendment | None:
        """What withdrawals changed of a record's tables, or None. WorkError when it can't be
        read."""
        path = self._folder / "amended" / f"{digest}.json"
        if not path.exists():
            return None
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            tables = {name: TableSeal(**seal) for name, seal in raw["tables"].items()}
            steps = [
                AmendmentStep(**{**step, "seal": TableSeal(**step["seal"])})
                for step in raw.get("steps", [])
            ]
            return Amendment(tables, dict(raw["removed"]), list(raw["withdrawals"]), steps)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkError(f"{path}: is no amendment of a record ({error})") from error

    def amend(
        self,
        digest: str,
        table: str,
        seal: TableSeal,
        *,
        gone: Iterable[str],
        removed: Mapping[str, str],
        by: str,
    ) -> None:
        """Notes that a record's table was written anew without some rows, by withdrawal `by`.
        The record's own bytes, and so its digest, stay."""
        before = self.amendment(digest) or Amendment({}, {}, [])
        previous = before.steps[-1].digest if before.steps else digest
        step = AmendmentStep(by, table, seal, sorted(gone), dict(removed), previous)
        after = Amendment(
            {**before.tables, table: seal},
            {**before.removed, **removed},
            sorted({*before.withdrawals, by}),
            [*before.steps, step],
        )
        folder = self._folder / "amended"
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{digest}.json", _canonical(asdict(after)))

    def amended(self) -> list[str]:
        """The digests of the records that were amended, sorted."""
        return sorted(path.stem for path in (self._folder / "amended").glob("*.json"))

    def as_published(self, digest: str) -> Record:
        """The record of this digest as it was written, its tables before any withdrawal.
        WorkError when it is missing or is not what it was."""
        if digest not in self._known:
            self._known[digest] = self._read(digest)
        return self._known[digest]

    def _read(self, digest: str) -> Record:
        body = self.body(digest)
        if hashlib.sha256(body).hexdigest() != digest:
            raise WorkError(f"record {digest} is not what it was: its bytes have another digest")
        raw = json.loads(body)
        tables = {name: TableSeal(**seal) for name, seal in raw.pop("tables").items()}
        return Record(**raw, tables=tables)

    def digests(self) -> list[str]:
        """Every record ever published, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def pointers(self) -> dict[str, str]:
        """Asset partition -> digest of its newest record."""
        return self._pointers("current")

    def retire(self, asset: str) -> None:
        """An asset partition has no current record any more; which was its last is kept."""
        name = AssetPartition.parse(asset).file_name
        (self._folder / "retired").mkdir(exist_ok=True)
        (self._folder / "current" / name).replace(self._folder / "retired" / name)

    def retired(self) -> dict[str, str]:
        """Asset partition -> digest of its last record, of those retired and not made since."""
        current = self.pointers()
        return {a: digest for a, digest in self._pointers("retired").items() if a not in current}

    def _pointers(self, folder: str) -> dict[str, str]:
        found = {}
        for path in sorted((self._folder / folder).glob("[!.]*")):
            try:
                asset = str(AssetPartition.of_file(path.name))
            except WorkError as error:
                raise WorkError(f"{path.parent}: {error}") from error
            found[asset] = path.read_text(encoding="ascii")
        return found

    def closure(self, digests: Iterable[str]) -> dict[str, Record]:
        """These records and all above them, each after those it was made from."""
        found: dict[str, Record] = {}

        def visit(digest: str) -> None:
            if digest in found:
                return
            record = self.get(digest)
            for parent in record.inputs.values():
                visit(parent)
            found[digest] = record

        for digest in digests:
            visit(digest)
        return found

    def pin(self, store: Store, digest: str) -> None:
        """Tags every table version that a record stands on, so that clean-up keeps it."""
        for above, record in self.closure([digest]).items():
            for name, seal in record.tables.items():
                store.tag(name, f"record-{above[:16]}", seal.version)


def sealed(store: Store, name: str) -> TableSeal:
    """The seal of a table's current version."""
    return seal_at(store, name, store.version(name))


def seal_at(store: Store, name: str, table_version: int) -> TableSeal:
    """The seal of a table's version, from its stored bytes and its decoded rows."""
    rows, content = content_at(store, name, table_version)
    return TableSeal(table_version, rows, content, dict(file_digests(store, name, table_version)))


def content_at(store: Store, name: str, table_version: int) -> tuple[int, str]:
    """(rows, digest of their values) of a table's version, decoded."""
    schema = store.open(name).schema
    kind = kind_of(name)
    # Caches that results never need: their files are sealed, not decoded.
    undecoded = kind.undecoded if kind is not None else ()
    columns = [column for column in schema.names if column not in undecoded]
    digest = ContentDigest()
    for batch in store.scan(name, columns, version=table_version):
        digest.add(batch)
    return digest.rows, digest.hexdigest()


def file_digests(store: Store, name: str, table_version: int) -> Iterator[tuple[str, str]]:
    """(path under the table's folder, SHA-256) of every file that a version refers to."""
    for path in store.files(name, table_version):
        with store.open_file(name, path) as stream:
            yield path, stream_digest(stream)


def seal_faults(
    store: Store, name: str, seal: TableSeal, *, manifest_only: bool = False
) -> Iterator[tuple[str, str]]:
    """(path under the table's folder, problem) of files that are not as sealed; with
    `manifest_only`, of what says which files the version has."""
    for path, expected in sorted(seal.files.items()):
        if manifest_only and not path.startswith("_versions/"):
            continue
        fault = file_fault(expected, partial(store.open_file, name, path))
        if fault is not None:
            yield path, fault


def file_fault(expected: str, opened: Callable[[], AbstractContextManager[BinaryIO]]) -> str | None:
    """What is wrong with a file against its recorded SHA-256, or None."""
    try:
        with opened() as stream:
            found = stream_digest(stream)
    except (FileNotFoundError, IsADirectoryError):
        return "the file is missing"
    if found != expected:
        return f"its bytes have digest {found[:16]}, not {expected[:16]}"
    return None


def folder_files(home: str, folder: Path) -> dict[str, str]:
    """Path under home -> SHA-256 of every file in a folder."""
    return {
        path.relative_to(home).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _canonical(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8")


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
