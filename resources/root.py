"""Whose a store's root is. Two homes over one root would each write every row, so the first home
that opens a root leaves its mark there, and any other is refused.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any

from mona.errors import RequestError

OWNER = "home.json"
_ID = "home.id"


def claim(root: str, home: Path) -> None:
    """Marks a root, a folder or a URI, as the store of `home`. RequestError when it is that of
    another home."""
    from pyarrow import fs

    mine = {
        "id": _written(home / _ID, uuid.uuid4().hex),
        "home": str(home.resolve()),
        "host": socket.gethostname(),
    }
    filesystem, folder = fs.FileSystem.from_uri(root)
    local = isinstance(filesystem, fs.LocalFileSystem)
    mark = f"{folder}/{OWNER}"
    owner = _read(filesystem, mark)
    if owner is None:
        # A store of before there was such a mark lies in its home.
        if local and (Path(folder) / "records").is_dir() and not _same(Path(folder), home):
            raise _refusal(root, {"home": folder}, mark)
        text = json.dumps(mine)
        if local:
            _written(Path(mark), text)
        else:
            with filesystem.open_output_stream(mark) as stream:
                stream.write(text.encode())
        owner = _read(filesystem, mark)
    if owner is None or owner.get("id") != mine["id"]:
        raise _refusal(root, owner or {}, mark)


def _refusal(root: str, owner: dict[str, Any], mark: str) -> RequestError:
    whose = f"{owner.get('home', 'unknown')} on {owner.get('host', socket.gethostname())}"
    return RequestError(
        f"store.root: {root} belongs to another home, {whose}: two would write every row twice; "
        f"name that store.home, or another root (where that home is gone, remove {mark})"
    )


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _read(filesystem: Any, path: str) -> dict[str, Any] | None:
    try:
        with filesystem.open_input_stream(path) as stream:
            owner = json.loads(stream.read())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RequestError(f"{path}: is no mark of a store ({error})") from error
    return owner if isinstance(owner, dict) else {}


def _written(path: Path, text: str) -> str:
    """What the file holds, `text` where there was none: of many at once, one writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        partial.write_text(text, encoding="utf-8")
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return path.read_text(encoding="utf-8")
