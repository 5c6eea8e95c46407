"""Retries for what can pass by itself, and none for what can't."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from mona.errors import PassingError

_TRIES = 4
_FIRST_WAIT_SECONDS = 15


@contextmanager
def retried(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Runs a step again after 15, 30 and 60 seconds when a hub or an index did not answer;
    any other failure is final at once."""
    try:
        yield
    except PassingError as error:
        if context.retry_number + 1 >= _TRIES:
            raise
        wait = _FIRST_WAIT_SECONDS * 2**context.retry_number
        context.log.warning(f"{error}; trying again in {wait} s")
        raise dg.RetryRequested(max_retries=_TRIES, seconds_to_wait=wait) from error
