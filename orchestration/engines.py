"""One database engine for each of Dagster's SQLite files.

Dagster makes an engine for every statement, and each engine compiles the statement anew: a
quarter of a small run's time on the processor. Connections are as many and as short as before.
Nothing here changes what is stored.
"""

from __future__ import annotations

import functools
from typing import Any

_ENGINES = 64  # each run has a file of its own; old ones are not asked again


def share_engines() -> None:
    """Has Dagster's three SQLite storages take the engine that this process made for a file."""
    from dagster._core.storage.event_log.sqlite import sqlite_event_log
    from dagster._core.storage.runs.sqlite import sqlite_run_storage
    from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        module.create_engine = _shared  # type: ignore[attr-defined]


def _shared(url: str, poolclass: Any, connect_args: dict[str, Any] | None = None) -> Any:
    return _engine(url, poolclass, tuple((connect_args or {}).items()))


@functools.lru_cache(_ENGINES)
def _engine(url: str, poolclass: Any, connect_args: tuple[tuple[str, Any], ...]) -> Any:
    from sqlalchemy import create_engine

    return create_engine(url, poolclass=poolclass, connect_args=dict(connect_args))
