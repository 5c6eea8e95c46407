"""A fresh project under the daemon: what is asked for, in which order, and again after a failure.
Only Dagster's events exist here; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType

from assets.keys import (
    ACTIVATIONS,
    DATASET_ENTRY,
    RAW_POOL,
    SAE,
    SAE_CODES,
    examples,
    label,
    model_entry,
    prototype,
    selection,
    target_entry,
)
from orchestration import asking
from orchestration.config import Config
from orchestration.definitions import build_definitions
from orchestration.home import open_instance
from orchestration.limits import EXPLAINS_VARIANCE
from resources.asset_partition import MODEL_ENTRY_PARTS
from tests.orchestration.bare import bare_settings, homed_config, report_check

PAIR = dg.MultiPartitionKey({"dataset": "fruit", "model": "tiny"})
CHOSEN = selection("adding", "mona")


class Daemon:
    """Ticks of conditions and sensors over a project; `fail` names what its runs can't make."""

    def __init__(self, config: Config, instance: dg.DagsterInstance) -> None:
        self.config, self.instance = config, instance
        self.definitions = build_definitions(config)
        self.repository = self.definitions.get_repository_def()
        self.fail: set[dg.AssetKey] = set()
        self._conditions: Any = None
        self._cursor: str | None = None
        self.skipped = ""
        self.made = 0

    def observe(self, key: dg.AssetKey, partition: str | None, version: str = "1") -> None:
        self.instance.report_runless_asset_event(
            dg.AssetObservation(key, partition=partition, tags={"dagster/data_version": version})
        )

    def conditions(self) -> set[str]:
        done = dg.evaluate_automation_conditions(
            self.definitions, self.instance, cursor=self._conditions
        )
        self._conditions = done.cursor
        asked: dict[str | None, list[dg.AssetKey]] = {}
        for result in done.results:
            for partition in done.get_requested_partitions(result.key):
                asked.setdefault(partition, []).append(result.key)
        for partition, keys in asked.items():
            self._run(keys, partition)
        return {label(key, part) for part, keys in asked.items() for key in keys}

    def follow_up(self) -> set[str]:
        sensor = self.repository.get_sensor_def("follow_up")
        with dg.build_sensor_context(
            self.instance, repository_def=self.repository, cursor=self._cursor
        ) as context:
            tick = sensor.evaluate_tick(context)
        self._cursor, self.skipped = tick.cursor, tick.skip_message or ""
        for request in tick.run_requests or ():
            self._run(list(request.asset_selection or ()), request.partition_key)
        return {
            label(key, request.partition_key)
            for request in tick.run_requests or ()
            for key in request.asset_selection or ()
        }

    def _run(self, keys: list[dg.AssetKey], partition: str | None) -> None:
        """A run's events, as the daemon's own would leave them."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        order = [RAW_POOL, examples("adding"), SAE, prototype("adding"), ACTIVATIONS, SAE_CODES]
        order.append(CHOSEN)
        ordered = [key for key in order if key in keys]
        assert len(ordered) == len(keys)
        tags = {"dagster/partition": partition} if partition is not None else {}
        run = self.instance.create_run_for_job(
            job, asset_selection=frozenset(keys), tags=tags, status=dg.DagsterRunStatus.STARTED
        )
        for key in ordered:
            if key in self.fail:
                self.instance.report_run_failed(run)
                return
            self.make(key, partition)
        self.instance.report_dagster_event(
            DagsterEvent(DagsterEventType.PIPELINE_SUCCESS.value, run.job_name), run.run_id
        )

    def make(self, key: dg.AssetKey, partition: str | None) -> None:
        graph = self.definitions.resolve_asset_graph()
        self.made += 1
        tags = {
            "dagster/data_version": str(self.made),
            "dagster/code_version": str(graph.get(key).code_version),
        }
        for parent in graph.get(key).parent_keys:
            tags |= self._read(parent, partition, graph)
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=partition, tags=tags)
        )
        for check in graph.asset_check_keys:
            if check.asset_key == key:
                figures = {"fvu": 0.1, "max_fvu": 0.5} if check == EXPLAINS_VARIANCE else {}
                report_check(self.instance, check, partition, passed=True, metadata=figures)

    def _read(self, parent: dg.AssetKey, partition: str | None, graph: Any) -> dict[str, str]:
        from orchestration.history import latest_before, stated_version

        node = graph.get(parent)
        part = partition
        if node.partitions_def is None:
            part = None
        elif (
            isinstance(partition, str) and "|" in partition and parent in (RAW_POOL, DATASET_ENTRY)
        ):
            part = "fruit"
        elif (
            isinstance(partition, str)
            and "|" in partition
            and (parent in (SAE, prototype("adding")) or parent.path[0] == "model_entry")
        ):
            part = "tiny"
        event = latest_before(self.instance, parent, part, None)
        assert event is not None, parent
        name = parent.to_user_string()
        stated = stated_version(event.version, part, observed=node.is_external)
        return {
            f"dagster/input_data_version/{name}": stated,
            f"dagster/input_event_pointer/{name}": str(event.storage_id),
        }


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    settings = {**bare_settings(), "automation": {"follow_changes": True}}
    config = homed_config(tmp_path, settings)
    with open_instance(config) as instance:
        daemon = Daemon(config, instance)
        daemon.observe(DATASET_ENTRY, "fruit")
        for part in MODEL_ENTRY_PARTS:
            daemon.observe(model_entry(part), "tiny")
        daemon.observe(target_entry("adding"), None)
        yield daemon


ALL = {
    "raw_pool[fruit]",
    "adding/examples",
    "sae[tiny]",
    "adding/prototype[tiny]",
    "activations[fruit|tiny]",
    "sae_codes[fruit|tiny]",
    "adding/mona/selection[fruit|tiny]",
}


def settle(daemon: Daemon) -> list[set[str]]:
    """What conditions and the follow-up ask for, tick by tick, until nothing more can come."""
    asked: list[set[str]] = []
    for _ in range(30):
        found = [daemon.conditions(), daemon.follow_up()]
        asked += [each for each in found if each]
        if not any(found) and daemon.skipped.startswith("nothing has happened"):
            return asked
    raise AssertionError(asked)


def test_a_fresh_project_is_made_whole_in_an_order_that_can_work(daemon: Daemon) -> None:
    asked = settle(daemon)
    assert set().union(*asked) == ALL
    assert sum(map(len, asked)) == len(ALL)
    place = {name: i for i, found in enumerate(asked) for name in found}
    assert place["raw_pool[fruit]"] < place["sae[tiny]"] < place["sae_codes[fruit|tiny]"]
    # Of other partitions, so made in a run of its own: not beside the one that reads it.
    assert place["adding/prototype[tiny]"] < place["adding/mona/selection[fruit|tiny]"]


def test_a_step_that_failed_once_is_asked_for_again_and_nothing_else(daemon: Daemon) -> None:
    daemon.fail = {CHOSEN}
    asked: list[set[str]] = []
    while set().union(*asked) != ALL:
        asked += [daemon.conditions(), daemon.follow_up()]
    daemon.fail = set()
    assert settle(daemon) == [{"adding/mona/selection[fruit|tiny]"}]


def test_what_failed_is_asked_for_again_with_an_end(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TRIES", 2)
    daemon.fail = {RAW_POOL}
    asks = settle(daemon)
    assert sum("raw_pool[fruit]" in found for found in asks) == 1 + 2
    assert not any("sae[tiny]" in found for found in asks)
    # An edit is a new reason; then all that stands on it follows.
    daemon.fail = set()
    daemon.observe(DATASET_ENTRY, "fruit", "2")
    assert set().union(*settle(daemon)) == ALL - {"adding/examples"}
