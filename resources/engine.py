"""How the machine is used: device, batch sizes, progress. Nothing here changes what is
computed beyond the dtype's rounding, so none of it is in a fingerprint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import dagster as dg
from pydantic import Field

from mona.device import resolve_device
from mona.spec import Spec


class EngineSpec(Spec):
    """The `engine` part of the configuration."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_tokens: int | None = Field(
        default=None, ge=16, description="padded tokens a forward pass; default by device"
    )
    commit_tokens: int | None = Field(
        default=None, ge=16, description="tokens between commits to the store; default by device"
    )
    processes: int = Field(
        default=1, ge=1, description="processes of a fine-tune, one for each GPU"
    )


class Engine(dg.ConfigurableResource):
    """The machine as the assets see it."""

    device: str = "auto"
    batch_tokens: int | None = None
    commit_tokens: int | None = None
    processes: int = 1

    @property
    def resolved_device(self) -> str:
        """cpu or cuda, decided without importing torch."""
        return resolve_device(self.device)

    @property
    def forward_tokens(self) -> int:
        """Padded tokens in one forward pass."""
        return self.batch_tokens or (1024 if self.resolved_device == "cpu" else 32_768)

    @property
    def window_tokens(self) -> int:
        """Tokens between two commits: rows are length-sorted and lost on a crash per window."""
        return self.commit_tokens or (32_768 if self.resolved_device == "cpu" else 4_194_304)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs; yields the function that advances it.

    Off a terminal it prints a line at most every ten seconds instead.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if sys.stderr.isatty():
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        with bar:
            task = bar.add_task(title, total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    with _line_progress(title, total, unit) as advance:
        yield advance


@contextmanager
def _line_progress(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    import time

    started = last = time.monotonic()
    done = 0

    def line() -> str:
        of = f"/{total:,}" if total else ""
        seconds = time.monotonic() - started
        rate = done / seconds if seconds > 0 else 0.0
        return f"{title}: {done:,}{of} {unit}, {seconds:.0f} s, {rate:,.0f} {unit}/s"

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    yield advance
    if done:
        print(line(), file=sys.stderr, flush=True)
