"""Where Dagster's own lines go: a file in the project's home, and standard error when asked."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

import dagster as dg

LOG_FILE = "dagster.log"
_BYTES = 4 * 2**20
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_shown = False


def show_lines() -> None:
    """From now on, in this process, Dagster's lines go to standard error too."""
    global _shown
    _shown = True


def build_logger(home: Path) -> dg.LoggerDefinition:
    """The logger of every run: into `logs/dagster.log` under `home`, which is turned over at some
    megabytes. Standard error gets lines at the run's `log_level`, which is Dagster's name for
    what its own console logger takes."""

    @dg.logger(
        config_schema={"log_level": dg.Field(str, is_required=False, default_value="CRITICAL")},
        description="Dagster's lines, into the project's own log.",
    )
    def console(context: dg.InitLoggerContext) -> logging.Logger:
        # A logger of its own: one that logging keeps would get a handler more a run.
        # Dagster says most of what happens at the level DEBUG.
        logger = logging.Logger("dagster", logging.DEBUG)
        folder = home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            folder / LOG_FILE,
            maxBytes=_BYTES,
            backupCount=1,
            encoding="utf-8",
            errors="backslashreplace",
            delay=True,
        )
        shown = logging.StreamHandler()
        shown.setLevel("DEBUG" if _shown else context.logger_config["log_level"])
        for handler in (file, shown):
            handler.setFormatter(logging.Formatter(_FORMAT))
            logger.addHandler(handler)
        return logger

    return console
