"""Retries for what can pass by itself, and none for what can't: `retried` stands under
`@dg.asset` of every asset that reaches a hub, an index or a lock."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from mona.errors import PassingError, TakenError

# The tag of a run that `mona` makes in its own process; the value is its pid.
FOREGROUND_TAG = "mona/process"
FIRST_WAIT_SECONDS = 15.0
_LONGEST_WAIT_SECONDS = 300.0
_TRIES = 4
_TRIES_FOR_A_LOCK = 10  # over half an hour
_P = ParamSpec("_P")
_R = TypeVar("_R")


def retried(step: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs a step again after 15, 30 and 60 seconds when a hub or an index did not answer, and
    longer when a lock is taken; any other failure is final at once.

    A taken lock is final where `mona run` made the run: it waits itself, with none of its own.
    """
    if inspect.isgeneratorfunction(step):

        def run(*args: Any, **kwargs: Any) -> Any:
            with _again():
                yield from step(*args, **kwargs)

    else:

        def run(*args: Any, **kwargs: Any) -> Any:
            with _again():
                return step(*args, **kwargs)

    return functools.wraps(step)(run)


@contextmanager
def _again() -> Iterator[None]:
    try:
        yield
    except PassingError as error:
        context = dg.AssetExecutionContext.get()
        tries = _TRIES
        if isinstance(error, TakenError):
            tries = 1 if FOREGROUND_TAG in context.run.tags else _TRIES_FOR_A_LOCK
        if context.retry_number + 1 >= tries:
            raise
        wait = min(FIRST_WAIT_SECONDS * 2**context.retry_number, _LONGEST_WAIT_SECONDS)
        # The log is for the UI; `mona run` keeps Dagster's off the terminal.
        context.log.warning(f"{error}; trying again in {wait:g} s")
        print(f"{error}; trying again in {wait:g} s", file=sys.stderr, flush=True)
        raise dg.RetryRequested(max_retries=tries, seconds_to_wait=wait) from error
