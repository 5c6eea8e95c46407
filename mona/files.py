"""Files as bytes: of data wherever they lie, on disk or inside a wheel; their digests. What the
bytes mean is `mona.containers`, writing is `mona.publishing`.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from mona.errors import RequestError, WorkError

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class DataFile:
    """A local file, or `member` of the zip archive at `path`. `relative` is its path within the
    folder or glob it was found by, where it was."""

    path: Path
    member: str | None = None
    relative: PurePosixPath | None = None

    @property
    def name(self) -> str:
        """What messages and provenance call this file: unlike its path sound text always."""
        outer = printable(str(self.relative or self.path.name))
        return outer if self.member is None else f"{outer}!{printable(self.member)}"

    @property
    def folder(self) -> str:
        """The name of the folder that holds the file."""
        inner = PurePosixPath(self.member) if self.member is not None else PurePosixPath(self.path)
        return printable(inner.parent.name)

    @property
    def filename(self) -> str:
        """The last part of the name, with its suffixes (.jsonl.gz)."""
        name = PurePosixPath(self.member).name if self.member is not None else self.path.name
        return printable(name)

    def open(self) -> io.BufferedReader:
        """The raw bytes, still compressed if they are. OSError, here and in reading, for what
        can't be read: a member that is encrypted, cut or not what its checksum says as well."""
        if self.member is None:
            return self.path.open("rb")
        return io.BufferedReader(_Member(self.path, self.member), _READ_BYTES)

    def digest(self) -> str:
        """SHA-256 of the raw bytes, hex. WorkError where they can't be read."""
        try:
            with self.open() as stream:
                return stream_digest(stream)
        except OSError as error:
            raise WorkError(f"{self.name}: {said(error)}") from error


def archive_members(path: Path) -> list[str]:
    """The names of the files in a zip archive. RequestError for what is none."""
    try:
        return [name for name in _archive(path).namelist() if not name.endswith("/")]
    except OSError as error:
        raise RequestError(f"{printable(path.name)}: {said(error)}") from error


def printable(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 are written \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def said(error: OSError) -> str:
    """What an OSError says, without the path that it may repeat."""
    return error.strerror or str(error) or type(error).__name__


class _Member(io.RawIOBase):
    """A member of a zip archive, whose many kinds of fault are all OSErrors here."""

    def __init__(self, archive: Path, member: str) -> None:
        with _zip_faults():
            self._stream = _archive(archive).open(member)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _zip_faults():
            return cast(io.BufferedIOBase, self._stream).readinto(buffer)

    def close(self) -> None:
        # Where opening failed there is nothing to close.
        if not self.closed and hasattr(self, "_stream"):
            self._stream.close()
        super().close()


@contextmanager
def _zip_faults() -> Iterator[None]:
    """What zipfile and its codecs raise, as OSError. (RuntimeError: encrypted, or a method that
    is unknown here.)"""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise OSError(f"zip: {str(error) or 'the archive is cut'}") from error
    except (ValueError, KeyError, struct.error) as error:
        raise OSError(f"zip: the archive is damaged ({error})") from error


def stream_digest(stream: BinaryIO) -> str:
    """SHA-256 of what is left of a stream, hex."""
    return hashlib.file_digest(cast(io.BufferedIOBase, stream), "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return stream_digest(stream)


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    # A wheel can have thousands of members; its directory is read once, not once a member.
    with _zip_faults():
        return zipfile.ZipFile(path)
