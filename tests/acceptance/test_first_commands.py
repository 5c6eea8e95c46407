"""Two to four first commands started together on a store that is not there yet: none fails, and
the store is sound. Twenty rounds, some minutes."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.orchestration.conftest import (  # noqa: F401
    Project,
    findings,
    project,
)

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    ("run", "--upto", "raw_pool"),
    ("run", "--upto", "examples"),
    ("run", "--dry-run"),
    ("status",),
    ("check",),
    ("gc",),
)


def start(project: Project, words: tuple[str, ...]) -> subprocess.Popen[str]:  # noqa: F811
    command = [sys.executable, "-m", "orchestration.cli", *words]
    return subprocess.Popen(
        [*command, "--config", str(project.config_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", range(20))
def test_none_fails_and_the_store_is_sound(project: Project, number: int) -> None:  # noqa: F811
    draw = random.Random(number)
    words = [COMMANDS[number % 2], *draw.choices(COMMANDS, k=draw.randint(1, 3))]
    for run in [start(project, each) for each in words]:
        said, _ = run.communicate(timeout=600)
        assert run.returncode == 0, said
    home = project.root / "store" / "dagster"
    databases = sorted(home.rglob("*.db"))
    assert len(databases) >= 3
    for path in databases:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            revisions = connection.execute("SELECT * FROM alembic_version").fetchall()
            assert len(revisions) == 1, path
    assert project.run(upto="raw_pool").made == []
    assert findings(project) == []
