"""Making Dagster's home: once, whole, by one process, before anything else opens it.

Dagster makes its databases as it opens them and does not expect company: two first commands at
once leave them half migrated for ever. So a home is made aside under a lock and put in its
place by a rename; one that an older version left half made is made again where it holds nothing.

Opening the home that is there is `orchestration.home`.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import dagster as dg

from assets.pools import CPU_POOL, GPU_POOL
from mona.errors import TakenError, WorkError
from mona.publishing import write_whole
from orchestration.home_settings import SETTINGS
from resources.locks import held

_MADE = "made.json"  # in a home: that it is whole, and its databases
# A database with a row in one of these is no left-over of a making that was cut short.
_HISTORY = ("runs", "event_logs", "asset_keys", "jobs", "instigators", "job_ticks")
_SAY_AFTER_SECONDS = 5.0


def make_home(folder: Path) -> None:
    """Makes Dagster's home `folder`, or finishes it, unless it is whole.

    Waits while another process makes it, and says for whom. WorkError where a database there
    is damaged and holds history.
    """
    if _is_whole(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_name(f"{folder.name}.lock")):
        if _is_whole(folder):
            return
        aside = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _put_settings(folder, aside)
        _open_once(aside)
        databases = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*.db"))
        if folder.exists():
            # A database before its write-ahead log would be read without it.
            for name in databases:
                _settle(folder / name, aside / name)
            if not (folder / "dagster.yaml").exists():
                (aside / "dagster.yaml").replace(folder / "dagster.yaml")
            shutil.rmtree(aside)
            _open_once(folder)
        else:
            aside.rename(folder)
        write_whole(folder / _MADE, json.dumps({"databases": databases}))


def _is_whole(folder: Path) -> bool:
    try:
        databases = json.loads((folder / _MADE).read_text(encoding="utf-8"))["databases"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all((folder / name).exists() for name in databases)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds the lock once whoever has it is done."""
    began, said = time.monotonic(), False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(lock, str(lock.with_suffix(""))))
                break
            except TakenError as error:
                if not said and time.monotonic() - began > _SAY_AFTER_SECONDS:
                    print(f"waiting: {error}", file=sys.stderr, flush=True)
                    said = True
            time.sleep(0.1)
        yield


def _put_settings(folder: Path, aside: Path) -> None:
    """The settings that are there are the user's; an empty file is one cut short."""
    settings = folder / "dagster.yaml"
    there = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    (aside / "dagster.yaml").write_text(there or SETTINGS, encoding="utf-8")
    if settings.is_file() and not there:
        write_whole(settings, SETTINGS)


def _open_once(home: Path) -> None:
    """Opens a home so that Dagster makes its databases, and sets the pools that are not set."""
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with dg.DagsterInstance.get() as instance:
            storage = instance.event_log_storage
            known = storage.get_concurrency_keys()
            if CPU_POOL not in known:
                storage.set_concurrency_slots(CPU_POOL, os.cpu_count() or 1)
            if GPU_POOL not in known:
                storage.initialize_concurrency_limit_to_default(GPU_POOL)
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before


def _settle(there: Path, fresh: Path) -> None:
    """Leaves a database that is sound, puts the fresh one in place of one that is missing or
    half made."""
    try:
        if there.exists() and _looked(there, lambda it: _is_sound(it, fresh)):
            return
        if there.exists() and _looked(there, _has_history):
            raise WorkError(f"{there}: Dagster's history is damaged: restore it from a backup")
    except sqlite3.Error as error:
        raise WorkError(f"{there}: Dagster's history can't be read ({error})") from error
    there.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("-wal", "-shm"):
        there.with_name(there.name + suffix).unlink(missing_ok=True)
    fresh.replace(there)


def _looked(path: Path, question: Callable[[sqlite3.Connection], bool]) -> bool:
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return question(connection)


def _is_sound(connection: sqlite3.Connection, fresh: Path) -> bool:
    """Whether it has one revision, and where that is the fresh one's, all of its tables. One of
    an older Dagster is for Dagster to migrate."""
    if "alembic_version" not in _tables(connection):
        return False
    revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    with closing(sqlite3.connect(fresh)) as made:
        newest = made.execute("SELECT version_num FROM alembic_version").fetchall()
        wanted = _tables(made)
    return len(revisions) == 1 and (revisions != newest or wanted <= _tables(connection))


def _has_history(connection: sqlite3.Connection) -> bool:
    there = _tables(connection)
    return any(
        connection.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone()
        for table in _HISTORY
        if table in there
    )


def _tables(connection: sqlite3.Connection) -> set[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in found if not name.startswith("sqlite_")}
