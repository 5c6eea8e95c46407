"""How a command ends: what is printed last, and the exit code.

0 done, 1 the work failed, 2 the request or configuration is wrong, 130 stopped by Ctrl-C, 141 the
reader of standard output left. A failure that was foreseen is a line; any other keeps its
traceback in a file that the line names.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from mona.errors import Faults, MonaError, RequestError
from orchestration.terminal import CONFIG_META, printable

STOPPED = 130
_READER_LEFT = 141  # as a shell reports a process that SIGPIPE ended
_OURS = ("mona", "resources", "assets", "orchestration")
# What a file system says of a place, not of our code.
_OF_THE_PLACE = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
        *(errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EMFILE, errno.EIO),
    )
)


def exit_code(command: click.Command, arguments: Sequence[str]) -> int:
    """Runs the command and says, on standard error, how it failed if it did."""
    _any_character()
    context = None
    try:
        with command.make_context("mona", list(arguments)) as context:
            command.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        _say(_request(error))
        return 2
    except (click.Abort, KeyboardInterrupt):
        # The empty line ends the one that a terminal shows ^C on.
        click.echo("\nstopped; the next run goes on from the last commit", err=True)
        return STOPPED
    except Faults as error:
        for fault in error.faults:
            _say(fault)
        return 2
    except MonaError as error:
        _say(str(error))
        return 2 if isinstance(error, RequestError) else 1
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _READER_LEFT
    except Exception as error:
        _say(_unforeseen(error, context, arguments))
        return 1


def _any_character() -> None:
    """Output never fails for what its encoding, or any encoding, can't hold."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _say(text: str) -> None:
    click.echo(f"mona: {printable(text)}", err=True)


def _request(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if context is None:
        return error.format_message()
    return f"{error.format_message()} ({context.command_path} --help says what it takes)"


def _unforeseen(error: Exception, context: click.Context | None, arguments: Sequence[str]) -> str:
    if isinstance(error, OSError) and error.errno in _OF_THE_PLACE:
        where = error.filename or "standard output or a temporary file"
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        return f"{os.fsdecode(where) if isinstance(where, bytes) else where}: {reason}"
    sentence = " ".join(str(error).split()) or type(error).__name__
    named = sentence if type(error).__name__ in sentence else f"{type(error).__name__}: {sentence}"
    if len(named) > 300:
        named = f"{named[:300]}..."
    raised_by = _raised_by(error)
    if raised_by not in _OURS:
        named = f"{raised_by} failed: {named}"
    try:
        kept = _kept_traceback(error, context, arguments)
    except OSError as unwritable:
        return f"{named} (no traceback: {unwritable})"
    return f"{named} (not foreseen: the traceback is in {kept})"


def _raised_by(error: Exception) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return _OURS[0]
    name: str = frames[-1][0].f_globals.get("__name__", "")
    return name.partition(".")[0]


def _kept_traceback(
    error: Exception, context: click.Context | None, arguments: Sequence[str]
) -> Path:
    """The file with the traceback, in the project's own log folder where there is one."""
    from mona import __version__

    folder = _logs(context)
    descriptor, name = tempfile.mkstemp(
        prefix=f"mona-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".txt", dir=folder
    )
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"mona {__version__}, Python {sys.version}\nmona {' '.join(arguments)}\n\n")
        file.writelines(traceback.format_exception(error))
    return Path(name)


def _logs(context: click.Context | None) -> Path | None:
    from orchestration.config import load_config

    try:
        home = load_config((context.meta if context else {}).get(CONFIG_META)).home
        if not home.is_dir():
            return None
        logs = home / "logs"
        logs.mkdir(exist_ok=True)
    except (MonaError, OSError):
        return None
    return logs
