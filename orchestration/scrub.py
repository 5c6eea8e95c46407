"""Taking samples' text out of Dagster's history: its databases and captured logs.

Events stay, with their ids, digests and figures: only strings, and whole logs, that show a
withdrawn sample are replaced. Which samples those are is the caller's.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from assets.describe import TEXT_COLUMNS
from mona.errors import WorkError
from mona.publishing import write_whole
from mona.traces import BLANK, Traces

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_SQLITE = b"SQLite format 3\x00"
_WAIT_SECONDS = 30


def scrub(home: Path, sample_ids: Collection[str], traces: Traces) -> int:
    """Blanks every string and log under Dagster's `home` that shows a sample; returns how many.
    Nothing of the old bytes is left in a database's free pages.

    WorkError when a database is in use by another process.
    """
    changed = 0
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        if path.name.endswith(("-wal", "-shm")):
            continue
        # Mona's UI may be at work beside this: what it removes meanwhile shows nothing.
        with suppress(FileNotFoundError):
            with path.open("rb") as stream:
                is_database = stream.read(len(_SQLITE)) == _SQLITE
            if is_database:
                changed += _scrub_database(path, sample_ids, traces)
            else:
                changed += _scrub_log(path, traces)
    return changed


def blanked(value: Any, sample_ids: Collection[str], traces: Traces) -> Any:
    """A parsed JSON value with what shows a sample replaced; the same object where nothing
    does."""
    if isinstance(value, str):
        return BLANK if traces.shown_in(value) else value
    if isinstance(value, list):
        items = [blanked(item, sample_ids, traces) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        made = _blanked_fields(value, sample_ids, traces)
        return made if any(made[key] is not value[key] for key in value) else value
    return value


def _blanked_fields(
    value: dict[str, Any], sample_ids: Collection[str], traces: Traces
) -> dict[str, Any]:
    own = value.get("sample_id")
    if isinstance(own, str):
        # The row of a table: its text is that of its sample, or of one that it names.
        named = {found for field in value.values() for found in _ID.findall(str(field))}
        gone = any(found in sample_ids for found in named)
        return {k: BLANK if gone and k in TEXT_COLUMNS else field for k, field in value.items()}
    return {key: blanked(field, sample_ids, traces) for key, field in value.items()}


def _scrub_database(path: Path, sample_ids: Collection[str], traces: Traces) -> int:
    changed = 0
    try:
        connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            for (table,) in connection.execute(tables).fetchall():
                changed += _scrub_table(connection, table, sample_ids, traces)
            connection.execute("COMMIT")
            # Also after a run that changed nothing: one cut short may have left old pages.
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise WorkError(f"{path}: {error}: stop what uses Dagster's history") from error
    except sqlite3.DatabaseError as error:
        raise WorkError(
            f"{path}: is damaged ({error}): restore it from a backup or remove it, and ask again"
        ) from error
    if busy:
        raise WorkError(f"{path}: is in use: stop what uses Dagster's history, mona ui perhaps")
    return changed


def _scrub_table(
    connection: sqlite3.Connection, table: str, sample_ids: Collection[str], traces: Traces
) -> int:
    columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
    changed = 0
    for column in columns:
        wanted = f'SELECT rowid, "{column}" FROM "{table}" WHERE typeof("{column}") = \'text\''
        for rowid, text in connection.execute(wanted).fetchall():
            clean = _blanked_text(text, sample_ids, traces)
            if clean is not text:
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (clean, rowid)
                )
                changed += 1
    return changed


def _blanked_text(text: str, sample_ids: Collection[str], traces: Traces) -> str:
    if text.startswith(("{", "[")):
        try:
            value = json.loads(text)
        except ValueError:
            return BLANK if traces.shown_in(text) else text
        clean = blanked(value, sample_ids, traces)
        return text if clean is value else json.dumps(clean)
    return BLANK if traces.shown_in(text) else text


def _scrub_log(path: Path, traces: Traces) -> int:
    # Whole, since a text runs over lines; a log is no part of the audit.
    if not traces.shown_in(path.read_text(encoding="utf-8", errors="replace")):
        return 0
    write_whole(path, f"{BLANK}\n")
    return 1
