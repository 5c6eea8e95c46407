"""Conditions, the sweep, schedules and notices: what follows a change, and only that."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from assets.keys import RAW_POOL, SAE, SAE_CODES, prototype, selection
from mona.errors import RequestError, WorkError
from orchestration import cli
from orchestration.definitions import build_definitions, build_resources
from orchestration.home import open_instance
from orchestration.notices import post
from orchestration.planner import Choice, Standing, label, steps
from orchestration.refresh import due
from orchestration.run import begin, bring_up_to_date, observe
from tests.orchestration.conftest import Project, sums


class Daemon:
    """Evaluates conditions as the daemon does, and makes what they request, in this process."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.cursor: Any = None

    def tick(self, *, make: bool = True) -> set[str]:
        """The partitions requested by one evaluation."""
        config = self.project.config
        requested: dict[str | None, list[dg.AssetKey]] = {}
        with open_instance(config) as instance:
            definitions = build_definitions(config)
            observe(config, instance, build_resources(config))
            done = dg.evaluate_automation_conditions(definitions, instance, cursor=self.cursor)
            self.cursor = done.cursor
            for result in done.results:
                for partition in sorted(done.get_requested_partitions(result.key), key=str):
                    requested.setdefault(partition, []).append(result.key)
            if make:
                job = definitions.resolve_implicit_global_asset_job_def()
                for partition, keys in requested.items():
                    job.execute_in_process(
                        instance=instance,
                        asset_selection=keys,
                        partition_key=partition,
                        raise_on_error=False,
                    )
        return {label(key, part) for part, keys in requested.items() for key in keys}

    def settle(self) -> list[set[str]]:
        """What every evaluation requests until two in a row request nothing."""
        rounds: list[set[str]] = []
        quiet = 0
        while quiet < 2:
            requested = self.tick()
            quiet = 0 if requested else quiet + 1
            rounds += [requested] if requested else []
        return rounds


@pytest.fixture
def daemon(project: Project) -> Daemon:
    project.first_run()
    return Daemon(project)


def test_only_what_changed_is_requested_down_to_the_selection(
    project: Project, daemon: Daemon
) -> None:
    assert daemon.settle() == []
    project.write_rows("verse", [*project.rows("verse"), *sums(300, 3)])
    assert daemon.settle() == [
        {"raw_pool[verse]"},
        # One run, in order: a blocking check between them still stops it.
        {"activations[verse|tiny]", "sae_codes[verse|tiny]", "adding/mona/selection[verse|tiny]"},
    ]
    assert set(project.status().values()) == {"fresh"}

    # The same rows in a rewritten file: the pool is read, nothing below it runs.
    project.write_rows("verse", project.rows("verse")[::-1])
    assert daemon.settle() == [{"raw_pool[verse]"}]

    # An edited recipe is a new code version of its selections alone.
    project.settings["recipes"]["mona"]["budget"] = {"count": 7}
    assert daemon.settle() == [
        {"adding/mona/selection[fruit|tiny]", "adding/mona/selection[verse|tiny]"}
    ]
    assert daemon.settle() == []


def test_a_failed_blocking_check_stops_the_daemon_too(project: Project, daemon: Daemon) -> None:
    assert daemon.settle() == []
    project.settings["models"]["tiny"]["sae"]["max_fvu"] = 1e-9
    project.settings["models"]["tiny"]["sae"]["train"]["seed"] = 5
    rounds = daemon.settle()
    assert "sae[tiny]" in rounds[0]
    assert sum("sae[tiny]" in requested for requested in rounds) == 1
    with open_instance(project.config) as instance:
        counts = {
            key.to_user_string(): len(instance.fetch_materializations(key, limit=10).records)
            for key in (SAE, SAE_CODES, prototype("adding"), selection("adding", "mona"))
        }
    # Two datasets: codes and selections were made twice before, and never after.
    assert counts == {"sae": 2, "sae_codes": 2, "adding/prototype": 1, "adding/mona/selection": 2}
    with pytest.raises(WorkError, match=r"sae\[tiny\]: check explains_variance failed: FVU 0\.\d"):
        project.run()
    shown = project.status()
    assert shown["sae[tiny]"] == "failed"
    # Raised as the line advises, the limit is enough: what follows is made, no SAE is trained.
    project.settings["models"]["tiny"]["sae"]["max_fvu"] = 2.0
    made = project.run()
    assert "sae[tiny]" in made.fresh
    assert "sae_codes[fruit|tiny]" in made.made
    assert set(project.status().values()) == {"fresh"}


def test_a_sweep_finds_what_no_condition_saw(project: Project, daemon: Daemon) -> None:
    project.write_rows("fruit", project.rows("fruit")[3:])
    project.run(upto="raw_pool")
    config = project.config
    with open_instance(config) as instance:
        graph = build_definitions(config).resolve_asset_graph()

        def found() -> list[str]:
            standing = Standing(instance, graph, config)
            planned = steps(config, Choice())
            return [
                label(key, step.partition) for step in due(standing, planned) for key in step.keys
            ]

        # Only what can be made now; the selection below waits for the codes.
        assert found() == ["activations[fruit|tiny]", "sae_codes[fruit|tiny]"]
        project.run(upto="sae_codes")
        assert found() == ["adding/mona/selection[fruit|tiny]"]


def test_a_tick_of_the_sweep_requests_what_was_missed_and_no_more(
    project: Project, daemon: Daemon
) -> None:
    project.settings["automation"] = {"sweep": "30 4 * * *"}
    project.settings["datasets"]["verse"]["refresh"] = "0 3 * * *"
    at = datetime.datetime(2026, 1, 2, 4, 30, tzinfo=datetime.UTC)

    def tick(name: str = "sweep") -> dict[str, set[str]]:
        """What one tick requests, as Dagster evaluates the schedule: partition -> assets."""
        with project.opened() as (_, definitions, instance):
            found: dict[str, set[str]] = {}
            repository = definitions.get_repository_def()
            with dg.build_schedule_context(instance, at, repository_def=repository) as context:
                ticked = repository.get_schedule_def(name).evaluate_tick(context)
            requests = ticked.run_requests or []
            assert len({request.run_key for request in requests}) == len(requests)
            for request in requests:
                keys = found.setdefault(request.partition_key or "", set())
                keys |= {key.to_user_string() for key in request.asset_selection or ()}
            return found

    assert tick() == {}
    # With no sensor at work, nothing saw the pool change and no condition fired.
    project.write_rows("fruit", project.rows("fruit")[3:])
    project.run(upto="raw_pool")
    missed = {"fruit|tiny": {"activations", "sae_codes"}}
    assert tick() == missed
    with project.opened() as (_, definitions, instance):
        run = instance.create_run_for_job(
            definitions.resolve_implicit_global_asset_job_def(),
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset([SAE_CODES]),
            tags={"dagster/partition": "fruit|tiny"},
        )
        assert tick() == {}
        instance.report_run_canceled(run)
    assert tick() == missed
    project.run(upto="sae_codes")
    assert tick() == {"fruit|tiny": {"adding/mona/selection"}}
    project.run()
    assert tick() == {}
    # A withdrawal whose row was chosen: the pool is next in line.
    sample = project.store.sample_ids("selection.adding.mona.verse.tiny")[0].as_py()
    withdraw(project, sample)
    assert tick() == tick("refresh_verse") == {"verse": {"raw_pool"}}


def withdraw(project: Project, sample: str) -> None:
    given = ["withdraw", "--yes", "--sample", sample, "--reason", "asked"]
    cli.cli([*given, "--config", str(project.config_path)], standalone_mode=False)


def test_schedules_are_off_by_default_and_request_their_dataset(project: Project) -> None:
    assert list(build_definitions(project.config).schedules or ()) == []
    project.settings["datasets"]["fruit"]["refresh"] = "0 3 * * *"
    project.settings["automation"] = {"sweep": "30 4 * * *"}
    refresh, sweep = build_definitions(project.config).schedules or ()
    assert (refresh.name, refresh.cron_schedule) == ("refresh_fruit", "0 3 * * *")
    assert (sweep.name, sweep.cron_schedule) == ("sweep", "30 4 * * *")
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_schedule_context(instance=instance) as context,
    ):
        request = refresh(context)
    assert (request.partition_key, request.asset_selection) == ("fruit", [RAW_POOL])
    project.settings["automation"] = {"sweep": "now and then"}
    with pytest.raises(RequestError, match=r"automation\.sweep: 'now and then' is no cron"):
        _ = project.config


def test_an_edited_schedule_makes_nothing_stale(project: Project) -> None:
    project.first_run()
    project.settings["datasets"]["fruit"]["refresh"] = "0 3 * * *"
    assert set(project.status().values()) == {"fresh"}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A local server that keeps the notices posted to it."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            taken.append(json.loads(self.rfile.read(size)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NOTICES", f"http://127.0.0.1:{server.server_port}/secret")
    yield taken
    server.shutdown()


def test_notices_reach_the_webhook(
    project: Project, receiver: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not post(project.config, {"event": "nothing"})
    project.settings["automation"] = {"webhook": "NOTICES"}
    assert post(project.config, {"event": "run failed", "reason": "ä"})
    assert receiver == [{"event": "run failed", "reason": "ä"}]
    monkeypatch.setenv("NOTICES", "ftp://somewhere")
    with pytest.raises(RequestError, match="no https URL"):
        post(project.config, {})
    monkeypatch.setenv("NOTICES", "http://127.0.0.1:9/secret")
    with pytest.raises(WorkError, match="does not answer") as refused:
        post(project.config, {})
    assert "secret" not in str(refused.value)
    monkeypatch.delenv("NOTICES")
    with pytest.raises(RequestError, match="NOTICES is not set"):
        post(project.config, {})
    names = [sensor.name for sensor in build_definitions(project.config).sensors or ()]
    assert "failures" in names


def test_an_edited_configuration_is_nobody_s_until_it_is_loaded(project: Project) -> None:
    project.settings["datasets"].pop("verse")
    project.settings["automation"] = {"follow_changes": True, "sweep": "* * * * *"}
    project.run(upto="raw_pool")
    with project.opened() as (config, definitions, instance):
        project.settings["models"]["tiny"]["max_length"] = 200
        project.write()
        said = f"{config.path} was edited since it was loaded"
        assert config.edited() == said
        with pytest.raises(WorkError, match="mona run again; what was made stays"):
            bring_up_to_date(config, definitions, instance, Choice())
        with pytest.raises(WorkError, match="launch the run again"):
            begin(config, build_resources(config), instance)
        for name in ("entries", "follow_up"):
            with dg.build_sensor_context(
                instance, definitions=definitions, resources=build_resources(config)
            ) as context:
                told = definitions.get_sensor_def(name)(context)
            assert isinstance(told, dg.SkipReason)
            assert said in str(told.skip_message)
    assert project.status()["sae[tiny]"] == "missing"
    assert "sae[tiny]" in project.run().made
