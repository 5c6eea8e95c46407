"""The sensor of hub revisions asks again for a move whose run failed, with an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.keys import RAW_POOL
from mona.spec import Hub
from orchestration import asking
from orchestration.definitions import build_definitions, build_resources
from resources.records import Record
from resources.sources import Sources
from tests.orchestration.bare import bare_settings, homed_config

COMMIT = {"now": "b"}


class Moving(Sources):
    """A hub whose branch is where the test says."""

    def hub_commit(self, hub: Hub, where: str) -> str:
        return COMMIT["now"]


class Watch:
    """Ticks of the sensor, its cursor kept."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        settings = bare_settings()
        settings["datasets"]["fruit"]["sources"] = [{"name": "far", "hub": {"repo": "a/b"}}]
        config = homed_config(folder, settings)
        self.instance = instance
        self.resources = {**build_resources(config), "sources": Moving(home=str(config.home))}
        self.definitions = build_definitions(config)
        self.repository = self.definitions.get_repository_def()
        self.cursor: str | None = None
        self.keys: list[str] = []

    def read(self, commit: str) -> None:
        record = Record("raw_pool[fruit]", "1", about={"revisions": {"far": commit}})
        self.resources["records"].publish(record)

    def tick(self) -> bool:
        sensor = self.repository.get_sensor_def("hub_revisions")
        with dg.build_sensor_context(
            self.instance,
            repository_def=self.repository,
            resources=self.resources,
            cursor=self.cursor,
        ) as context:
            tick = sensor.evaluate_tick(context)
        self.cursor = tick.cursor
        found = [str(request.run_key) for request in tick.run_requests or ()]
        self.keys += found
        return bool(found)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    COMMIT["now"] = "b"
    with dg.instance_for_test() as instance:
        yield Watch(tmp_path, instance)


def test_a_move_whose_run_failed_is_asked_for_again(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TRIES", 3)
    assert not watch.tick()  # nothing was read yet
    watch.read("a")
    assert [watch.tick() for _ in range(9)] == [i in (0, 2, 5) for i in range(9)]
    assert len(set(watch.keys)) == 3  # a used run key is passed over by Dagster
    COMMIT["now"] = "c"
    assert watch.tick()
    watch.read("c")
    assert not watch.tick()


def test_a_move_that_is_being_read_is_not_asked_for_twice(watch: Watch) -> None:
    watch.read("a")
    assert watch.tick()
    run = watch.instance.create_run_for_job(
        watch.definitions.resolve_implicit_global_asset_job_def(),
        status=dg.DagsterRunStatus.STARTING,
        asset_selection=frozenset([RAW_POOL]),
        tags={"dagster/partition": "fruit"},
    )
    assert not any(watch.tick() for _ in range(5))
    watch.instance.report_run_canceled(run)
    assert any(watch.tick() for _ in range(2))


def test_it_is_off_where_nothing_is_read_of_a_hub(tmp_path: Path) -> None:
    definitions = build_definitions(homed_config(tmp_path))
    assert {sensor.name for sensor in definitions.sensors or ()} == {
        "entries",
        "follow_changes",
        "follow_up",
    }
