"""Nothing waits on wall time: a clock that is set back keeps nobody."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

from assets.pools import GPU_POOL
from orchestration.home import open_instance, run_here
from orchestration.waits import make_waits_steady
from resources.withdrawals import Withdrawal, Withdrawals
from tests.orchestration.bare import homed_config

TWO_YEARS = 2 * 365 * 86_400


def test_a_place_in_a_pool_is_had_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_waits_steady()
    wall, steady = time.time(), time.monotonic()
    with open_instance(homed_config(tmp_path)) as instance:
        storage = instance.event_log_storage
        assert storage.claim_concurrency_slot(GPU_POOL, "other", "step").is_claimed
        run = dg.DagsterRun(job_name="a", run_id="mine")
        with InstanceConcurrencyContext(instance, run) as claims:
            assert not claims.claim(GPU_POOL, "step")
            storage.free_concurrency_slots_for_run("other")
            monkeypatch.setattr(time, "time", lambda: wall - TWO_YEARS)
            monkeypatch.setattr(time, "monotonic", lambda: steady + 60)
            assert claims.claim(GPU_POOL, "step")


def test_a_step_is_tried_again_though_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = []

    @dg.asset
    def late() -> None:
        tries.append(1)
        if len(tries) == 1:
            wall = time.time()
            monkeypatch.setattr(time, "time", lambda: wall - TWO_YEARS)
            raise dg.RetryRequested(max_retries=2, seconds_to_wait=0.2)

    job = dg.Definitions(assets=[late]).resolve_implicit_global_asset_job_def()
    with dg.instance_for_test() as instance:
        run_here(job, instance)
    assert len(tries) == 2


def test_withdrawals_are_told_in_the_order_they_were_made(tmp_path: Path) -> None:
    ledger = Withdrawals(tmp_path)
    for place, at in enumerate(("2026-05-01", "2024-05-01", "2025-05-01")):
        ledger.open(Withdrawal("asked", ids=(f"{place:032d}",), at=at))
    assert [found.ids[0][-1] for found in ledger.all()] == ["0", "1", "2"]
    assert [found.number for found in ledger.all()] == [1, 2, 3]
