"""A Hugging Face hub on 127.0.0.1 that holds what a test pushes to it.

It speaks the part of the protocol that reading needs: repository info, trees, paths-info and
files with their ETag, commit and ranges, and the headers by which a client tells a missing
repository, revision or file from a gated one. Commits are made by `push` and never change.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["datasets", "models"]
_DATE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Repo:
    """Commits of one repository, and the branches that point at them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch or of a commit's id."""
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class FakeHub:
    """Repositories by kind and name, and how badly the hub behaves."""

    token: str = "hf_right"
    repos: dict[tuple[Kind, str], Repo] = field(default_factory=dict)
    failures: int = 0
    gone: bool = False
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def push(
        self,
        kind: Kind,
        name: str,
        files: Mapping[str, bytes],
        *,
        branch: str = "main",
        gated: bool = False,
    ) -> str:
        """A new commit of exactly these files; the branch moves to it. Returns its id."""
        repo = self.repos.setdefault((kind, name), Repo())
        repo.gated = gated
        content = json.dumps([[path, _blob(body)] for path, body in sorted(files.items())])
        commit = hashlib.sha1(f"{repo.branches.get(branch)}{content}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def fail(self, times: int) -> None:
        """Answers the next so many requests with 503."""
        self.failures = times

    def take_requests(self) -> list[str]:
        """`METHOD path` of every request since the last call."""
        taken, self.requests = self.requests, []
        return taken


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub under `hub.url` while the block runs."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass(frozen=True)
class _RefusedError(Exception):
    status: int
    code: str
    message: str


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    _lock = threading.Lock()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hub.gone:
            # As a connection that broke: no status at all.
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self._lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            failing = self.hub.failures > 0
            self.hub.failures -= failing
        try:
            if failing:
                raise _RefusedError(503, "", "Service Unavailable")
            self._route(body)
        except _RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def _route(self, body: bytes) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            kind, name, rest = parts[1], "/".join(parts[2:4]), parts[4:]
            if kind not in ("datasets", "models"):
                raise _RefusedError(404, "", "no such page")
            self._api(kind, name, rest, body)  # type: ignore[arg-type]
            return
        kind = "datasets" if parts[0] == "datasets" else "models"
        if kind == "datasets":
            parts = parts[1:]
        if len(parts) < 5 or parts[2] not in ("resolve", "raw"):
            raise _RefusedError(404, "RepoNotFound", "Repository not found")
        self._file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))  # type: ignore[arg-type]

    def _repo(self, kind: Kind, name: str, revision: str, *, content: bool) -> tuple[str, Any]:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            # As the hub says it to whoever brings no token: it might be private.
            raise _RefusedError(
                404 if self._token() else 401, "RepoNotFound", "Repository not found"
            )
        if repo.gated and content and self._token() != self.hub.token:
            raise _RefusedError(
                403 if self._token() else 401,
                "GatedRepo",
                f"Access to {name} is restricted. You must be authenticated to access it.",
            )
        commit = repo.resolve(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _api(self, kind: Kind, name: str, rest: list[str], body: bytes) -> None:
        action = rest[0] if rest else "info"
        revision = rest[1] if len(rest) > 1 else "main"
        if action in ("info", "revision"):
            # What a gated repository is, is public; what is in it is not.
            commit, files = self._repo(kind, name, revision, content=False)
            self._json(
                {
                    "_id": _blob(name.encode())[:24],
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": False,
                    "gated": "auto" if self.hub.repos[kind, name].gated else False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "lastModified": _DATE.isoformat().replace("+00:00", ".000Z"),
                    "createdAt": _DATE.isoformat().replace("+00:00", ".000Z"),
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }
            )
            return
        if action == "tree":
            _, files = self._repo(kind, name, revision, content=True)
            under = "/".join(rest[2:])
            query = parse_qs(urlsplit(self.path).query)
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            found = _tree(files, under, recursive)
            if under and not found:
                raise _RefusedError(404, "EntryNotFound", f"{under} does not exist")
            self._json(found)
            return
        if action == "paths-info":
            _, files = self._repo(kind, name, revision, content=True)
            if "json" in (self.headers.get("Content-Type") or ""):
                paths = json.loads(body)["paths"]
            else:
                paths = parse_qs(body.decode())["paths"]
            every = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._json([every[path] for path in paths if path in every])
            return
        raise _RefusedError(404, "", "no such page")

    def _file(self, kind: Kind, name: str, revision: str, path: str) -> None:
        commit, files = self._repo(kind, name, revision, content=True)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        body = files[path]
        headers["ETag"] = f'"{_blob(body)}"'
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, body, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(body) - int(last))
        end = min(int(last), len(body) - 1) if first and last else len(body) - 1
        if start > end:
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(body)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        self._send(206, body[start : end + 1], headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", format_datetime(_DATE, usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _tree(files: Mapping[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries under a folder, as the hub lists them."""
    prefix = f"{under}/" if under else ""
    found: dict[str, dict[str, Any]] = {}
    for path, body in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        inner = path.removeprefix(prefix).split("/")
        for depth in range(1, len(inner) if recursive else min(2, len(inner))):
            folder = prefix + "/".join(inner[:depth])
            found[folder] = _entry("directory", folder, b"")
        if recursive or len(inner) == 1:
            found[path] = _entry("file", path, body)
    return list(found.values())


def _entry(kind: str, path: str, body: bytes) -> dict[str, Any]:
    return {"type": kind, "path": path, "oid": _blob(body or path.encode()), "size": len(body)}
