"""Retries for what can pass by itself, and none for what can't: `retried` stands under
`@dg.asset` of every asset that reaches a hub or an index."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from mona.errors import PassingError

FIRST_WAIT_SECONDS = 15.0
_TRIES = 4
_P = ParamSpec("_P")
_R = TypeVar("_R")


def retried(step: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs a step again after 15, 30 and 60 seconds when a hub or an index did not answer;
    any other failure is final at once."""
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
        if context.retry_number + 1 >= _TRIES:
            raise
        wait = FIRST_WAIT_SECONDS * 2**context.retry_number
        # The log is for the UI; `mona run` keeps Dagster's off the terminal.
        context.log.warning(f"{error}; trying again in {wait:g} s")
        print(f"{error}; trying again in {wait:g} s", file=sys.stderr, flush=True)
        raise dg.RetryRequested(max_retries=_TRIES, seconds_to_wait=wait) from error
