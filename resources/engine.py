"""How the machine is used: device, batch sizes, progress. Nothing here changes what is
computed beyond the dtype's rounding, so none of it is in a fingerprint.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import dagster as dg
from pydantic import Field

from mona.device import resolve_device
from mona.spec import Spec

LINE_SECONDS = 10.0
_LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"


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
    """A bar on standard error while the block runs, with rate and time left; yields the function
    that advances it. Off a terminal, a line every ten seconds and one at the end.

    Nothing where `TQDM_DISABLE` is set, which libraries' own bars heed as well.
    """
    from tqdm import tqdm

    if os.environ.get("TQDM_DISABLE") or sys.stderr is None:
        yield lambda _: None
    elif sys.stderr.isatty():
        with tqdm(
            total=total, desc=title, unit=f" {unit}", unit_scale=_scaled(total), leave=False
        ) as bar:

            def update(amount: int) -> None:
                bar.update(amount)

            yield update
    else:
        with _line_progress(title, total, unit) as advance:
            yield advance


def _scaled(total: int | None) -> bool:
    """Whether figures are told in thousands: hundreds would only lose by it."""
    return total is not None and total >= 10_000


@contextmanager
def _line_progress(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    started = last = time.monotonic()
    done = 0

    def say() -> None:
        text = tqdm.format_meter(
            done,
            total or 0,
            time.monotonic() - started,
            prefix=title,
            unit=f" {unit}",
            unit_scale=_scaled(total),
            # Without the bar itself, which no file needs.
            bar_format=_LINE if total else None,
        )
        print(text, file=sys.stderr, flush=True)

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say()

    yield advance
    if done:
        say()
