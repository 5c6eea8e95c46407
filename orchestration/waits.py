"""Dagster's waits inside a run, by a clock that nobody sets.

For a place in a pool, and before a step's next try, Dagster compares times of the wall clock: a
clock set back meanwhile makes it wait until that time comes again. The two modules that do so are
given a steady one. They are private: a test says when they move.
"""

from __future__ import annotations

import time

from dagster._core.execution.plan import active, instance_concurrency_context

_BEGAN = time.time() - time.monotonic()


class _Steady:
    """What the two modules use of `time`."""

    @staticmethod
    def time() -> float:
        return _BEGAN + time.monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


def make_waits_steady() -> None:
    """From now on runs of this process wait by the steady clock."""
    for module in (active, instance_concurrency_context):
        module.time = _Steady  # type: ignore[attr-defined]
