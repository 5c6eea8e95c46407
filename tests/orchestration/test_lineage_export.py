"""The exported events against what OpenLineage's schema 2-0-2 demands of a RunEvent and of each
facet we write, in our own words: no package ships the schema."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from assets.keys import finetune, label, selection
from mona.errors import RequestError
from orchestration import cli
from orchestration.definitions import build_resources
from tests.orchestration.conftest import TINY_FINETUNE, Project, sums

pytest.importorskip("openlineage")

SUBSET = label(selection("adding", "mona"), "fruit|tiny")
MODEL = label(finetune("adding", "mona"), "fruit|tiny")
# Where a facet may stand -> its key -> its schema's name and its required fields' types. A facet
# that is not here has not been read in the published schema: read it before adding it.
FACETS: dict[str, dict[str, tuple[str, dict[str, type]]]] = {
    "run": {
        "processing_engine": ("ProcessingEngineRunFacet", {"version": str}),
        "parent": ("ParentRunFacet", {"run": dict, "job": dict}),
    },
    "job": {
        "documentation": ("DocumentationJobFacet", {"description": str}),
        "jobType": ("JobTypeJobFacet", {"processingType": str, "integration": str}),
    },
    "dataset": {"version": ("DatasetVersionDatasetFacet", {"datasetVersion": str})},
    "outputDataset": {
        "outputStatistics": ("OutputStatisticsOutputDatasetFacet", {"rowCount": int})
    },
}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
CORE = re.compile(r"https://openlineage\.io/spec/2-\d+-\d+/OpenLineage\.json#/\$defs/RunEvent")
FACET = r"https://openlineage\.io/spec/facets/\d+-\d+-\d+/{0}\.json#/\$defs/{0}"


def check_event(event: dict[str, Any]) -> None:
    assert RFC3339.fullmatch(event["eventTime"])
    assert datetime.datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    assert event["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert URI.fullmatch(event["producer"])
    assert CORE.fullmatch(event["schemaURL"])
    check_run(event["run"])
    check_named(event["job"], "job")
    for dataset in event["inputs"]:
        check_named(dataset, "dataset")
        assert not dataset.get("inputFacets")
    for dataset in event["outputs"]:
        check_named(dataset, "dataset")
        check_facets(dataset.get("outputFacets", {}), "outputDataset")


def check_run(run: dict[str, Any]) -> None:
    assert str(uuid.UUID(run["runId"])) == run["runId"]
    check_facets(run.get("facets", {}), "run")


def check_named(holder: dict[str, Any], kind: str) -> None:
    assert isinstance(holder["namespace"], str)
    assert isinstance(holder["name"], str)
    check_facets(holder.get("facets", {}), kind)


def check_facets(facets: dict[str, Any], kind: str) -> None:
    for key, facet in facets.items():
        schema, fields = FACETS[kind][key]
        assert URI.fullmatch(facet["_producer"])
        assert re.fullmatch(FACET.format(schema), facet["_schemaURL"])
        for name, expected in fields.items():
            assert type(facet[name]) is expected, f"{key}.{name}"
        if key == "parent":
            check_run(facet["run"])
            check_named(facet["job"], "job")


@pytest.fixture
def history(project: Project, tiny_llama: Path) -> Project:
    """Two runs, the second over a grown pool, and a model that was tuned elsewhere."""
    project.settings["datasets"].pop("verse")
    project.settings["recipes"]["mona"]["finetune"] = TINY_FINETUNE
    project.first_run(upto="selection")
    project.write_rows("fruit", [*project.rows("fruit"), *sums(200, 12)])
    project.run(upto="selection")
    mona(project, "register", "adding/mona", "--model", str(tiny_llama))
    return project


def mona(project: Project, *words: str) -> None:
    cli.cli([*words, "--config", str(project.config_path)], standalone_mode=False)


def exported(project: Project, name: str = "events.jsonl") -> list[dict[str, Any]]:
    out = project.root / "audit" / name
    mona(project, "lineage", "export", "--out", str(out))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_the_history_leaves_as_valid_events(history: Project) -> None:
    events = exported(history)
    for event in events:
        check_event(event)
    assert [event["eventTime"] for event in events] == sorted(e["eventTime"] for e in events)

    # A run starts, completes, and is of one job; Dagster's is above it where there was one.
    by_run: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_run.setdefault(event["run"]["runId"], []).append(event)
    for pair in by_run.values():
        assert [event["eventType"] for event in pair] == ["START", "COMPLETE"]
        assert pair[0]["job"] == pair[1]["job"]
        assert pair[0]["run"] == pair[1]["run"]
    done = [event for event in events if event["eventType"] == "COMPLETE"]
    records = build_resources(history.config)["records"]
    assert len(done) == len(records.digests()) == len(by_run)
    orphans = [event for event in done if "parent" not in event["run"]["facets"]]
    assert [event["outputs"][0]["name"] for event in orphans] == [MODEL]
    assert all(event["inputs"] for event in orphans)

    versions = {(e["outputs"][0]["name"], dataset_version(e["outputs"][0])) for e in done}
    subsets = [event for event in done if event["outputs"][0]["name"] == SUBSET]
    assert len(subsets) == 2
    for event in subsets:
        assert {dataset["name"] for dataset in event["inputs"]} >= {"raw_pool[fruit]"}
        assert {(d["name"], dataset_version(d)) for d in event["inputs"]} <= versions
        assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 10
    pools = [event for event in done if event["outputs"][0]["name"] == "raw_pool[fruit]"]
    (source,) = [d for d in pools[-1]["inputs"] if d["namespace"] == "mona.sources"]
    digest = hashlib.sha256((history.root / "fruit.jsonl").read_bytes()).hexdigest()
    assert dataset_version(source) == digest

    assert exported(history, "again.jsonl") == events
    with pytest.raises(RequestError, match="exists; give --force"):
        exported(history)


def dataset_version(dataset: dict[str, Any]) -> str:
    return str(dataset["facets"]["version"]["datasetVersion"])
