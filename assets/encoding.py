"""`activations` and `sae_codes` [dataset x model]: one step, one forward pass a sample."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.describe import picture, table
from assets.entries import entries_read
from assets.keys import (
    ACTIVATIONS,
    RAW_POOL,
    SAE,
    SAE_CODES,
    Partitions,
    by_dataset,
    by_model,
    dataset_and_model,
    label,
    model_entry,
)
from assets.pools import GPU_POOL
from assets.raw_pool import pool_table
from assets.retries import retried
from assets.step import finished
from mona import method
from mona.fingerprint import fingerprint, rows_digest
from mona.spec import ModelSpec, RecipeSpec, views_read
from resources.encoding_tables import pool_population
from resources.encodings import CodesOf, Encodings, SyncReport
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Records
from resources.snapshot import Snapshot
from resources.store import Store
from resources.table_at import TableAt

# The tag of a run that also drops the rows of samples that left the pool.
FORGET_TAG = "mona/forget"
NEW_ROWS_FVU = "FVU on new rows"
NEW_ROWS_TOKENS = 256  # fewer say nothing about a variance


def build_encoding(
    models: Mapping[str, ModelSpec], recipes: Mapping[str, RecipeSpec], partitions: Partitions
) -> dg.AssetsDefinition:
    """The subsettable multi-asset for all configured datasets and models."""
    views = views_read(recipes.values())

    @dg.multi_asset(
        name="encode",
        specs=[
            dg.AssetSpec(
                ACTIVATIONS,
                deps=[by_dataset(RAW_POOL), by_model(model_entry("encoder"))],
                group_name="encoding",
                code_version=fingerprint(code="2", views=method.of_views(views)),
                description="What the forward pass counted, and the dense views recipes read, "
                "one row a sample.",
            ),
            dg.AssetSpec(
                SAE_CODES,
                deps=[
                    by_dataset(RAW_POOL),
                    by_model(SAE),
                    by_model(model_entry("encoder")),
                    by_model(model_entry("codes")),
                ],
                group_name="encoding",
                code_version=fingerprint(code="2", method=method.CODES),
                description="Sparse autoencoder codes, one row a sample, in LanceDB.",
            ),
        ],
        partitions_def=partitions.dataset_model,
        can_subset=True,
        pool=GPU_POOL,
    )
    @retried
    def encode(
        context: dg.AssetExecutionContext,
        shelf: Models,
        store: Store,
        engine: Engine,
        records: Records,
    ) -> Iterator[dg.MaterializeResult[Any]]:
        dataset, name = dataset_and_model(context)
        pool, sae = label(RAW_POOL, dataset), label(SAE, name)
        coding = SAE_CODES in context.selected_asset_keys
        read = Snapshot.of(store, records, [pool, sae] if coding else [pool])
        model = shelf.resolve(name, models[name])
        entries = entries_read(shelf, name, model.spec, "encoder", "codes")
        population = pool_population(dataset)
        samples = read.table(pool, pool_table(dataset))
        encodings = Encodings.of_model(population, samples, model, views, shelf, store, engine)
        codes = None
        if coding:
            digest = str(read.record(sae).about["sae"])
            codes = CodesOf.of_model(population, model, digest, shelf)
        started = time.monotonic()
        title = f"encoding {dataset} with {name}"
        with store.lock(encodings.table):
            with progress_bar(title, len(samples.sample_ids), "samples") as advance:
                report = encodings.sync(codes, advance)
            if FORGET_TAG in context.run.tags:
                encodings.forget_departed(codes)
            work = _work_metadata(report, time.monotonic() - started)
            rows = rows_digest(samples.sample_ids.to_pylist())
            about = {
                "rows": rows,
                "encoder": model.encoder,
                "language model": model.spec.language_model.public_name,
                "layer": model.spec.layer,
            }
            if ACTIVATIONS in context.selected_asset_keys:
                aside = set_aside(store.newest(encodings.table), samples)
                yield finished(
                    read,
                    ACTIVATIONS,
                    context.partition_key,
                    fingerprint(rows=rows, encoder=model.encoder, views=method.of_views(views)),
                    inputs=read.only(pool),
                    entries={key: v for key, v in entries.items() if "encoder" in key},
                    tables=[encodings.table, *encodings.view_tables.values()],
                    about={
                        **about,
                        "revisions": shelf.revisions(model.spec),
                        "set aside": aside.num_rows,
                    },
                    shown={
                        **work,
                        **_activation_figures(
                            store.newest(encodings.table), samples, model.spec.max_length
                        ),
                        **_set_aside_figures(aside),
                    },
                )
            if codes is not None:
                yield finished(
                    read,
                    SAE_CODES,
                    context.partition_key,
                    fingerprint(rows=rows, codes=codes.fingerprint),
                    entries=entries,
                    tables=[codes.table],
                    about={**about, "codes": codes.fingerprint},
                    shown={
                        **work,
                        **_new_rows_quality(report, codes),
                        **_code_figures(store.newest(codes.table)),
                    },
                )

    return encode


def _new_rows_quality(report: SyncReport, codes: CodesOf) -> dict[str, Any]:
    """How well the SAE explains the samples that got codes in this run, from a draw of them.

    The SAE is pinned while its pool moves on, so this is where a drift is seen.
    """
    drawn = [states for _, states in sorted(report.drawn.items()) if len(states)]
    if sum(map(len, drawn)) < NEW_ROWS_TOKENS:
        return {}
    from mona.sae_quality import measure

    quality = measure(codes.sae, drawn, codes.k)
    return {NEW_ROWS_FVU: quality.fvu, "new rows measured (tokens)": quality.tokens}


def _work_metadata(report: SyncReport, seconds: float) -> dict[str, Any]:
    rate = report.forwarded_tokens / seconds if report.forwarded_tokens else 0.0
    return {
        "dagster/row_count": report.samples,
        "samples run through the model": report.forwarded,
        "tokens run through the model": report.forwarded_tokens,
        "samples encoded from cached tokens": report.from_cache,
        "rows kept of samples that left": report.departed,
        "seconds": round(seconds, 1),
        "tokens per second": round(rate, 1),
        "share of batch slots holding a token": round(
            report.forwarded_tokens / report.padded_tokens, 4
        )
        if report.padded_tokens
        else 1.0,
        **({"token cache": report.cache_refused} if report.cache_refused else {}),
    }


def set_aside(rows: TableAt, samples: TableAt) -> pa.Table:
    """(sample_id, set_aside: why) of the population's samples that can't be rendered truly."""
    found = rows.read(["sample_id", "set_aside"], where="set_aside IS NOT NULL")
    return found.filter(pc.is_in(found.column("sample_id"), samples.sample_ids))


def _set_aside_figures(aside: pa.Table) -> dict[str, Any]:
    reasons = zip(*aside.slice(0, 20).to_pydict().values(), strict=True)
    why = [{"sample_id": key, "why": reason} for key, reason in reasons]
    return {
        "samples set aside": aside.num_rows,
        **({"set aside, first": table(why)} if why else {}),
    }


def _activation_figures(rows: TableAt, samples: TableAt, max_length: int) -> dict[str, Any]:
    """Figures of the population's rows; the table may hold rows of samples that left."""
    from mona.plots import norm_histogram

    stored = rows.read(["sample_id", "n_tokens", "length", "norm"], where="set_aside IS NULL")
    stored = stored.filter(pc.is_in(stored.column("sample_id"), samples.sample_ids))
    n_tokens = stored.column("n_tokens").to_numpy()
    return {
        "counted tokens": int(n_tokens.sum()),
        "truncated samples": int((stored.column("length").to_numpy() > max_length).sum()),
        "samples without a counted token": int((n_tokens == 0).sum()),
        "activation norms": picture(
            norm_histogram(stored.column("norm").to_numpy()), "mean residual-stream norm a sample"
        ),
    }


def _code_figures(rows: TableAt) -> dict[str, Any]:
    from mona.plots import nonzeros_histogram

    offsets = (batch.column("indices").offsets for batch in rows.scan(["indices"]))
    counts = [np.diff(found.to_numpy()) for found in offsets]
    nonzeros = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    return {
        "non-zeros a sample": float(nonzeros.mean()) if len(nonzeros) else 0.0,
        "empty codes": int((nonzeros == 0).sum()),
        "non-zeros": picture(nonzeros_histogram(nonzeros), "non-zero latents a sample"),
    }
