"""Is Dagster's history whole? Its database files, each against itself and the two copies that
Dagster keeps of every event against each other.

What the events say is compared with the records in `orchestration.verify`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

# Dagster writes an event into its run's database and, with those of assets, checks and runs, into
# this one beside it.
INDEX = "history/runs/index.db"
_EVENTS = (
    "SELECT run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition "
    "FROM event_logs"
)


def history_problems(home: Path) -> tuple[list[tuple[str, str]], bool]:
    """((file under Dagster's home, problem) of each, whether Dagster can read its history); no
    problem where it lies in no files of the home."""
    files = sorted(path for path in home.rglob("*.db") if path.is_file())
    index = home / INDEX
    found = [
        (path.relative_to(home).as_posix(), problem)
        for path in files
        for problem in _integrity(path)
    ]
    if index.parent.is_dir() and not index.exists():
        found.append((INDEX, "the file is missing"))
    damaged = {name for name, _ in found}
    readable = not damaged
    if index.exists() and INDEX not in damaged:
        try:
            found += [*_copies(home, damaged), *_mirrors(home)]
        except sqlite3.DatabaseError as error:
            found.append((INDEX, f"can't be read ({error})"))
            readable = False
    return found, readable


def _integrity(path: Path) -> Iterator[str]:
    if path.stat().st_size == 0:
        yield "the file is empty"
        return
    try:
        with closing(_opened(path)) as connection:
            (first, *_) = connection.execute("PRAGMA integrity_check").fetchall()
            if first[0] != "ok":
                yield f"is damaged ({' '.join(str(first[0]).split())})"
            # Text that is no text passes the check of the structure.
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                for _ in connection.execute(f'SELECT * FROM "{table}"'):
                    pass
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        yield f"is damaged ({error})"


def _copies(home: Path, damaged: set[str]) -> Iterator[tuple[str, str]]:
    """Events of the index that their run's database does not have so."""
    with closing(_opened(home / INDEX)) as connection:
        by_run: dict[str, list[tuple[str, str]]] = {}
        for run, *rest in connection.execute(_EVENTS):
            by_run.setdefault(run or "", []).append((str(rest[1]), _digest(run, *rest)))
    for run, events in sorted(by_run.items()):
        shard = home / "history" / "runs" / f"{run}.db"
        name = shard.relative_to(home).as_posix()
        if name in damaged:
            continue
        if not shard.exists():
            yield name, f"is missing: {INDEX} has {len(events)} events of this run"
            continue
        with closing(_opened(shard)) as connection:
            own = {_digest(*row) for row in connection.execute(_EVENTS)}
        changed = [kind for kind, digest in events if digest not in own]
        if changed:
            yield name, f"{len(changed)} events differ from {INDEX}, first a {changed[0]}"


def _mirrors(home: Path) -> Iterator[tuple[str, str]]:
    """What the index keeps of its own events a second time: the newest materialisation of each
    asset, the result of each check, the tags."""
    with closing(_opened(home / INDEX)) as connection:
        events = dict(connection.execute("SELECT id, event FROM event_logs"))
        for asset, kept in connection.execute(
            "SELECT asset_key, last_materialization FROM asset_keys "
            "WHERE last_materialization IS NOT NULL"
        ):
            try:
                record = json.loads(kept)
                same = record["event_log_entry"] == json.loads(events[record["storage_id"]])
            except (ValueError, KeyError, TypeError):
                same = False
            if not same:
                yield INDEX, f"the newest materialisation of {asset} differs from its event"
        results = set(events.values())
        for asset, kept in connection.execute(
            "SELECT asset_key, evaluation_event FROM asset_check_executions "
            "WHERE evaluation_event IS NOT NULL"
        ):
            if kept not in results:
                yield INDEX, f"a check's result of {asset} differs from its event"
        for place, key, value in connection.execute(
            "SELECT event_id, key, value FROM asset_event_tags"
        ):
            event = events.get(place, "")
            if not all(json.dumps(text)[1:-1] in event for text in (key, value or "")):
                yield INDEX, f"tag {key} of event {place} is not the event's"


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
