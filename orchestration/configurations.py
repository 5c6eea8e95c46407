"""Which configurations are used over one home: so that what one made is not reclaimed because
another does not name it.

Each is noted by its file's path, relative to the home (a project may be moved); what it names is
read from that file when it is asked for. One whose file is gone, or that names another store by
now, counts no more.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mona.errors import RequestError
from mona.publishing import write_whole
from orchestration.config import Config, load_config


def note(config: Config) -> None:
    """Notes that a configuration is used over its home."""
    folder = _folder(config.home)
    where = os.path.relpath(config.path.resolve(), config.home.resolve())
    path = folder / hashlib.sha256(os.fsencode(where)).hexdigest()[:16]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, os.fsencode(where))


def others(config: Config) -> list[Config]:
    """The other configurations over this one's home. RequestError naming one whose file can't be
    read: nobody knows what is still its."""
    found = []
    for noted in sorted(_folder(config.home).glob("[!.]*")):
        path = (config.home.resolve() / os.fsdecode(noted.read_bytes())).resolve()
        if path == config.path.resolve() or not path.is_file():
            continue
        try:
            other = load_config(path)
        except RequestError as error:
            raise RequestError(
                f"another configuration over this store can't be read, mend or remove it: {error}"
            ) from error
        if other.home.resolve() == config.home.resolve():
            found.append(other)
    return found


def _folder(home: Path) -> Path:
    return home / "configurations"
