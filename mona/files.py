"""Files as bytes: of data wherever they lie, on disk or inside a wheel; their digests; writing
one whole or not at all. What the bytes mean is `mona.containers`.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from mona.errors import RequestError


@dataclass(frozen=True, slots=True)
class DataFile:
    """A local file, or `member` of the zip archive at `path`."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """What messages and provenance call this file."""
        return self.path.name if self.member is None else f"{self.path.name}!{self.member}"

    @property
    def folder(self) -> str:
        """The name of the folder that holds the file."""
        inner = PurePosixPath(self.member) if self.member is not None else PurePosixPath(self.path)
        return inner.parent.name

    @property
    def filename(self) -> str:
        """The last part of the name, with its suffixes (.jsonl.gz)."""
        return PurePosixPath(self.member).name if self.member is not None else self.path.name

    def open(self) -> BinaryIO:
        """The raw bytes, still compressed if they are."""
        if self.member is None:
            return self.path.open("rb")
        return cast(BinaryIO, _archive(self.path).open(self.member))

    def digest(self) -> str:
        """SHA-256 of the raw bytes, hex."""
        with self.open() as stream:
            return stream_digest(stream)


def stream_digest(stream: BinaryIO) -> str:
    """SHA-256 of what is left of a stream, hex."""
    return hashlib.file_digest(cast(io.BufferedIOBase, stream), "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return stream_digest(stream)


def refuse_existing(path: Path, force: bool) -> None:
    """RequestError where something is at `path`, unless it may be replaced: a file or a folder,
    never a device or a pipe."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RequestError(f"{path}: is neither a file nor a folder")
    if path.exists() and not force:
        raise RequestError(f"{path}: exists; give --force to overwrite it")


def write_whole(path: Path, body: str | bytes) -> None:
    """Writes a file in an existing folder, text as UTF-8: whoever reads it, whenever this
    process or the machine stops, finds the old content or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(body.encode("utf-8") if isinstance(body, str) else body)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    # A wheel can have thousands of members; its directory is read once, not once a member.
    return zipfile.ZipFile(path)
