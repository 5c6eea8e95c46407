"""The audit in the form others read: OpenLineage run events of the whole history.

A START and a COMPLETE event a materialisation, from Dagster's event log for when and in which
run, and from the provenance records for what was read and made. Datasets are asset partitions,
their version the data version; source files are datasets of their own, their version the SHA-256.

A run of OpenLineage is of one job, one of Dagster makes many assets: so each materialisation is
a run of its own, with Dagster's as its parent where there is one (a model that was registered
was made in none).
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import dagster as dg

from assets.keys import label
from mona.errors import RequestError
from orchestration.history import materialisations, record_of
from resources.records import Record, Records

NAMESPACE = "mona"
SOURCES_NAMESPACE = "mona.sources"


@dataclass(frozen=True, slots=True)
class _Made:
    """One materialisation: seconds since 1970, and the Dagster run (id, job) it was made in."""

    key: dg.AssetKey
    record: str
    started: float
    ended: float
    parent: tuple[str, str] | None


def run_events(graph: Any, instance: dg.DagsterInstance, records: Records) -> Iterator[str]:
    """Events as JSON, one a line, oldest first. RequestError without openlineage-python."""
    try:
        from openlineage.client.event_v2 import RunState, set_producer
        from openlineage.client.serde import Serde
    except ImportError as error:
        raise RequestError(
            "OpenLineage events need openlineage-python: pip install 'mona-select[lineage]'"
        ) from error

    set_producer(f"urn:mona-select:{version('mona-select')}")
    made = list(_made(graph, instance))
    moments = sorted(
        moment
        for place, found in enumerate(made)
        for moment in ((found.started, place, False), (found.ended, place, True))
    )
    for seconds, place, ended in moments:
        found = made[place]
        record = records.get(found.record)
        event = _event(graph, found, record)
        event.eventTime = _moment(seconds)
        event.eventType = RunState.COMPLETE if ended else RunState.START
        if ended:
            event.inputs, event.outputs = _inputs(record, records), [_output(record)]
        yield Serde.to_json(event, ensure_ascii=False)


def _made(graph: Any, instance: dg.DagsterInstance) -> Iterator[_Made]:
    """Every materialisation that carries a record, oldest first."""

    @cache
    def job(run_id: str) -> str | None:
        run = instance.get_run_by_id(run_id) if run_id else None
        return run.job_name if run is not None else None

    @cache
    def starts(run_id: str) -> dict[str, float]:
        steps = instance.get_run_step_stats(run_id) if run_id else []
        return {step.step_key: step.start_time for step in steps if step.start_time is not None}

    events = [
        event
        for key in graph.materializable_asset_keys
        for event in materialisations(instance, key)
    ]
    for event in sorted(events, key=lambda found: found.storage_id):
        digest = record_of(event)
        if digest is not None:
            name = job(event.run_id)
            yield _Made(
                event.asset_key,
                digest,
                starts(event.run_id).get(event.event_log_entry.step_key, event.timestamp),
                event.timestamp,
                (event.run_id, name) if name is not None else None,
            )


def _event(graph: Any, made: _Made, record: Record) -> Any:
    """What both events of a materialisation say."""
    from openlineage.client.event_v2 import Job, Run, RunEvent
    from openlineage.client.facet_v2 import (
        documentation_job,
        job_type_job,
        parent_run,
        processing_engine_run,
    )

    described = graph.get(made.key).description or label(made.key)
    # From what stays as it is, so that a second export names the same runs.
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, f"mona:{record.asset}:{made.ended!r}:{made.record}")
    run = Run(
        str(run_id),
        facets={
            "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
                version=version("dagster"), name="dagster"
            )
        },
    )
    if made.parent is not None and run.facets is not None:
        parent_id, name = made.parent
        run.facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(parent_id), job=parent_run.Job(NAMESPACE, name)
        )
    return RunEvent(
        eventTime=_moment(made.ended),
        run=run,
        job=Job(
            NAMESPACE,
            label(made.key),
            facets={
                "documentation": documentation_job.DocumentationJobFacet(description=described),
                "jobType": job_type_job.JobTypeJobFacet(
                    processingType="BATCH", integration="DAGSTER", jobType="ASSET"
                ),
            },
        ),
    )


def _inputs(record: Record, records: Records) -> list[Any]:
    """What a materialisation read: other assets, observed entries and source files."""
    from openlineage.client.event_v2 import InputDataset

    inputs = [
        InputDataset(NAMESPACE, asset, facets=_version(records.get(digest).data_version))
        for asset, digest in sorted(record.inputs.items())
    ]
    inputs += [
        InputDataset(NAMESPACE, entry, facets=_version(entry_version))
        for entry, entry_version in sorted(record.entries.items())
    ]
    sources = record.about.get("sources")
    if isinstance(sources, dict):
        inputs += [
            InputDataset(SOURCES_NAMESPACE, name, facets=_version(digest))
            for name, digest in sorted(sources.items())
        ]
    return inputs


def _output(record: Record) -> Any:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset

    output = OutputDataset(NAMESPACE, record.asset, facets=_version(record.data_version))
    if record.tables and output.outputFacets is not None:
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
        rows = sum(seal.rows for seal in record.tables.values())
        output.outputFacets["outputStatistics"] = statistics(rowCount=rows)
    return output


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _version(data_version: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(data_version)}
