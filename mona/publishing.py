"""Publishing: a file or a folder stands under its name whole or not at all.

Until it is done it lies beside its place under another name, and is then renamed: whoever reads
it, whenever this process stops, finds what was there before or the new. What is written belongs
to its writers, reading to `mona.files`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mona.errors import RequestError


def refuse_existing(path: Path, force: bool) -> None:
    """RequestError where something is at `path`, unless it may be replaced: a file or a folder,
    never a device or a pipe."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RequestError(f"{path}: is neither a file nor a folder")
    if path.exists() and not force:
        raise RequestError(f"{path}: exists; give --force to overwrite it")


def unfinished(path: Path, ending: str = "mona-partial") -> Path:
    """A place beside `path` for what is not yet whole, always the same: what a kill leaves there
    is found."""
    # Of the whole name only a digest: a name may be as long as the file system allows.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{name}.{ending}")


@contextmanager
def published_file(path: Path, partial: Path) -> Iterator[Path]:
    """The empty file `partial`, in the folder of `path`, to write to: takes the place of `path`
    when the block ends, its bytes on the disk, and is removed when it raises."""
    partial.unlink(missing_ok=True)
    # Exclusively: never through a link that someone put there.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, body: str | bytes) -> None:
    """Writes a file in an existing folder, text as UTF-8. Several processes may write it at once:
    one of them is the last."""
    with published_file(path, unfinished(path, f"{os.getpid()}.partial")) as partial:
        partial.write_bytes(body.encode("utf-8") if isinstance(body, str) else body)


@contextmanager
def published_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill; is put at `out` by `publish_folder` when the block ends, and removed
    when it raises. Where `replace` is given, what was at `out` goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        partial = beside / "new"
        partial.mkdir()
        yield partial
        if replace and out.exists():
            out.replace(beside / "old")
        publish_folder(partial, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def publish_folder(whole: Path, out: Path) -> None:
    """Renames a folder, on the same file system, to `out`. Where another process made `out`
    meanwhile, that one stays, and `whole` as well."""
    try:
        whole.rename(out)
    except OSError:
        if not out.is_dir():
            raise
