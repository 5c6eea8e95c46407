"""The two kinds of failure a user meets. Anything else that escapes is a bug."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MonaError(Exception):
    """A failure explained in one line: what, where (file, row or key), and why."""


class RequestError(MonaError):
    """The request, the configuration or its files are wrong. The command exits with 2."""


class WorkError(MonaError):
    """The request was fine and the work failed. The command exits with 1."""


class PassingError(WorkError):
    """A failure that may pass by itself: a hub or an index that did not answer."""


class TakenError(PassingError):
    """Another process is at work on it; passes when that one ends. `lock` is the file that it
    holds until then, where it is one."""

    def __init__(self, message: str, lock: Path | None = None) -> None:
        super().__init__(message)
        self.lock = lock


class Faults(RequestError):  # noqa: N818 (the plural of what each is)
    """Several faults that were found together; `faults` holds a line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


def sentence(error: BaseException, longest: int = 300) -> str:
    """What a library said, as one line of at most `longest` characters: its message, with the
    kind of the error where the message alone would not say what is wrong."""
    said = " ".join(str(error).split())
    if not said or isinstance(error, LookupError | TypeError | AttributeError | AssertionError):
        said = f"{type(error).__name__}: {said}".rstrip(": ")
    return said if len(said) <= longest else said[: longest - 3] + "..."
