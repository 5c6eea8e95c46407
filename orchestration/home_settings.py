"""The `dagster.yaml` of a project's home, and what an older version wrote there."""

from __future__ import annotations

from pathlib import Path

from mona.publishing import write_whole

_BEFORE = (
    """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 1
""",
)
# No capture of a step's output: it takes descriptor 2, and with it every progress bar.
SETTINGS = f"""\
{_BEFORE[-1]}compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""


def settle_settings(home: Path) -> None:
    """Writes the settings where there are none, or exactly what an older version wrote; what a
    person edited stays."""
    path = home / "dagster.yaml"
    there = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not there or there in _BEFORE:
        write_whole(path, SETTINGS)
