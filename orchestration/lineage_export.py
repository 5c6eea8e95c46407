"""The audit in the form others read: OpenLineage run events of the whole history.

One COMPLETE event a materialisation, from Dagster's event log for when and in which run, and
from the provenance records for what was read and made. Datasets are asset partitions, their
version the data version; source files are datasets of their own, their version the SHA-256.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import dagster as dg

from assets.describe import RECORD
from assets.keys import label
from mona.errors import RequestError
from resources.records import Record, Records

NAMESPACE = "mona"
SOURCES_NAMESPACE = "mona.sources"


def run_events(graph: Any, instance: dg.DagsterInstance, records: Records) -> Iterator[str]:
    """Events as JSON, one a line, oldest first. RequestError without openlineage-python."""
    try:
        from openlineage.client.event_v2 import set_producer
        from openlineage.client.serde import Serde
    except ImportError as error:
        raise RequestError(
            "OpenLineage events need openlineage-python: pip install 'mona-select[lineage]'"
        ) from error

    set_producer(f"urn:mona-select:{version('mona-select')}")
    made: list[Any] = []
    for key in sorted(graph.materializable_asset_keys):
        cursor: str | None = None
        while True:
            page = instance.fetch_materializations(key, limit=500, cursor=cursor)
            made += page.records
            if not page.has_more:
                break
            cursor = page.cursor
    for event in sorted(made, key=lambda found: found.storage_id):
        digest = event.asset_materialization.metadata.get(RECORD)
        if digest is not None:
            record = records.get(str(digest.value))
            yield Serde.to_json(_event(graph, event, record, records), ensure_ascii=False)


def _event(graph: Any, event: Any, record: Record, records: Records) -> Any:
    from openlineage.client.event_v2 import (
        InputDataset,
        Job,
        OutputDataset,
        Run,
        RunEvent,
        RunState,
    )
    from openlineage.client.facet_v2 import (
        documentation_job,
        job_type_job,
        output_statistics_output_dataset,
        processing_engine_run,
    )

    key = event.asset_key
    described = graph.get(key).description or label(key)
    rows = sum(seal.rows for seal in record.tables.values())
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
    moment = datetime.datetime.fromtimestamp(event.timestamp, datetime.UTC)
    return RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=moment.isoformat(),
        run=Run(
            event.run_id,
            facets={
                "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
                    version=version("dagster"), name="dagster"
                )
            },
        ),
        job=Job(
            NAMESPACE,
            label(key),
            facets={
                "documentation": documentation_job.DocumentationJobFacet(description=described),
                "jobType": job_type_job.JobTypeJobFacet(
                    processingType="BATCH", integration="DAGSTER", jobType="ASSET"
                ),
            },
        ),
        inputs=inputs,
        outputs=[
            OutputDataset(
                NAMESPACE,
                record.asset,
                facets=_version(record.data_version),
                outputFacets={
                    "outputStatistics": (
                        output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                            rowCount=rows
                        )
                    )
                },
            )
        ],
    )


def _version(data_version: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(data_version)}
