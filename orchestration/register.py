"""A fine-tune made elsewhere, taken in as if it had been made here: checked against the subset it
claims to come from, copied, recorded, and shown to Dagster as this partition's fine-tune."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
)

from assets.describe import provenance
from assets.finetune import PROVENANCE_FILE, tuned_folder
from assets.keys import both, finetune, label, selection
from mona.errors import RequestError
from mona.fingerprint import fingerprint
from mona.publishing import publish_folder
from mona.tuned import tuned_digest
from orchestration.history import latest_before, stated_version
from orchestration.planner import Standing
from resources.records import Record, Records, folder_files
from resources.snapshot import Snapshot
from resources.store import Store


def register(
    standing: Standing,
    records: Records,
    store: Store,
    subset: tuple[str, str],
    partition: tuple[str, str],
    model: Path,
    data: Path | None,
) -> Path:
    """Takes in the tuned model in the folder `model` and returns where it lies.

    subset: (owner, recipe); partition: (dataset, model entry). data: the exported file it was
    trained on, whose sample ids must all be in the subset. RequestError where the claim does not
    hold or the folder is no tuned model; nothing is changed then.
    """
    owner, recipe = subset
    dataset, encoder = partition
    key = finetune(owner, recipe)
    asset = both(dataset, encoder)
    graph = standing.graph
    if key not in graph.materializable_asset_keys:
        raise RequestError(f"{owner}/{recipe}: the recipe has no finetune entry to register for")
    subset_asset = label(selection(owner, recipe), asset)
    snapshot = Snapshot.of(store, records, [subset_asset])
    digest, chosen = snapshot.inputs[subset_asset], snapshot.record(subset_asset)
    (table,) = chosen.tables
    columns = ["rank", "sample_id", "score", "origins"]
    rows = snapshot.table(subset_asset, table).read(columns).to_pylist()
    trained = _trained_ids(data, {row["sample_id"] for row in rows}) if data else None
    tuned = tuned_digest(model)
    name = fingerprint(external=tuned, subset=digest)
    folder = tuned_folder(store, owner, recipe, dataset, encoder, name)
    if not folder.exists():
        staging = store.folder("scratch", "tuned") / name
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(model, staging, ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pkl"))
        facts = {
            "registered": True,
            "subset": {"asset": chosen.asset, "record": digest, "rows": rows},
            "checked against": sorted(trained) if trained is not None else None,
        }
        body = json.dumps(facts, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
        (staging / PROVENANCE_FILE).write_text(body, encoding="utf-8")
        publish_folder(staging, folder)
    parents = list(standing.parents(key, asset, with_entries=True))
    read = {parent: latest_before(standing.instance, *parent, None) for parent in parents}
    entries = {
        label(*parent): event.version
        for parent, event in read.items()
        if graph.get(parent[0]).is_external and event is not None
    }
    record = Record(
        asset=label(key, asset),
        data_version=tuned,
        inputs=snapshot.inputs,
        entries=entries,
        files=folder_files(records.home, folder),
        about={
            "registered": True,
            "tuned": tuned,
            "folder": folder.relative_to(records.home).as_posix(),
            "samples": len(trained if trained is not None else rows),
            "checked against the data file": trained is not None,
        },
    )
    tags = {
        DATA_VERSION_TAG: tuned,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        CODE_VERSION_TAG: str(graph.get(key).code_version),
    }
    for (parent, part), event in read.items():
        if event is None:
            raise RequestError(f"{label(parent, part)} was never made: mona run first")
        name_of = parent.to_user_string()
        tags[f"{INPUT_DATA_VERSION_TAG_PREFIX}/{name_of}"] = stated_version(
            event.version, part, observed=graph.get(parent).is_external
        )
        tags[f"{INPUT_EVENT_POINTER_TAG_PREFIX}/{name_of}"] = str(event.storage_id)
    standing.instance.report_runless_asset_event(
        dg.AssetMaterialization(
            asset_key=key,
            partition=asset,
            tags=tags,
            metadata={
                "registered": True,
                "folder": dg.MetadataValue.path(str(folder)),
                **provenance(records.publish(record), record),
            },
        )
    )
    return folder


def _trained_ids(data: Path, subset: set[str]) -> set[str]:
    """The sample ids of an exported file. RequestError when one is not of the subset."""
    found: set[str] = set()
    for number, row in enumerate(_rows(data), 1):
        sample_id = row.get("sample_id") if isinstance(row, dict) else None
        if not isinstance(sample_id, str):
            raise RequestError(f"{data} row {number}: no sample_id; register the exported file")
        if sample_id not in subset:
            raise RequestError(f"{data} row {number}: sample {sample_id} is not in the subset")
        found.add(sample_id)
    if not found:
        raise RequestError(f"{data}: no rows")
    return found


def _rows(data: Path) -> Iterable[Any]:
    if not data.is_file():
        raise RequestError(f"{data}: no such file")
    if data.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(data, columns=["sample_id"]).to_pylist()
    text = data.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise RequestError(f"{data}: is not JSON ({error})") from error
