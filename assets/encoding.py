"""`activations` and `sae_codes` [dataset x model]: one step, one forward pass a sample."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from assets.describe import picture, provenance
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
from assets.retries import retried
from mona.fingerprint import fingerprint, rows_digest
from mona.spec import ModelSpec
from resources.encodings import Encodings, SyncReport, pool_population
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Record, Records, sealed
from resources.store import Store

if TYPE_CHECKING:
    from mona.sae import SparseAutoencoder

NEW_ROWS_FVU = "FVU on new rows"
NEW_ROWS_TOKENS = 256  # fewer say nothing about a variance


def build_encoding(models: Mapping[str, ModelSpec], partitions: Partitions) -> dg.AssetsDefinition:
    """The subsettable multi-asset for all configured datasets and models."""

    @dg.multi_asset(
        name="encode",
        specs=[
            dg.AssetSpec(
                ACTIVATIONS,
                deps=[by_dataset(RAW_POOL), by_model(model_entry("encoder"))],
                group_name="encoding",
                code_version="1",
                description="Dense views of the residual stream, one row a sample.",
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
                code_version="1",
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
        model = models[name]
        pool = records.read_at([label(RAW_POOL, dataset)])
        entries = entries_read(shelf, name, model, "encoder", "codes")
        encodings = Encodings.of_model(pool_population(dataset), name, model, shelf, store, engine)
        encoder_fingerprint = encodings.encoder_fingerprint
        sae = codes_table = None
        codes_fingerprint = ""
        if SAE_CODES in context.selected_asset_keys:
            sae_record = records.read_at([label(SAE, name)])
            sae, digest = shelf.current_sae(name)
            codes_fingerprint = shelf.codes_fingerprint(name, model, digest)
            codes_table = encodings.population.codes_table(name, codes_fingerprint)
        started = time.monotonic()
        with (
            store.lock(encodings.table),
            progress_bar(
                f"encoding {dataset} with {name}", len(encodings.sample_ids), "samples"
            ) as advance,
        ):
            report = encodings.sync(
                codes_table,
                codes_fingerprint,
                sae,
                k=model.k,
                pooling=model.pooling,
                progress=advance,
            )
        work = _work_metadata(report, time.monotonic() - started)
        new_rows = _new_rows_quality(report, sae, model.k)
        rows = rows_digest(encodings.sample_ids.to_pylist())
        shown = {"language model": model.language_model.public_name, "layer": model.layer}
        if ACTIVATIONS in context.selected_asset_keys:
            record = Record(
                asset=label(ACTIVATIONS, context.partition_key),
                data_version=fingerprint(rows=rows, encoder=encoder_fingerprint),
                inputs=pool,
                entries={key: v for key, v in entries.items() if "encoder" in key},
                tables={encodings.table: sealed(store, encodings.table)},
                about={
                    "rows": rows,
                    "encoder": encoder_fingerprint,
                    **shown,
                    "revisions": shelf.revisions(model),
                },
            )
            yield dg.MaterializeResult(
                asset_key=ACTIVATIONS,
                data_version=dg.DataVersion(record.data_version),
                metadata={
                    **work,
                    **_activation_figures(store, encodings.table, model.max_length),
                    **provenance(records.publish(record), record),
                },
            )
        if codes_table is not None:
            record = Record(
                asset=label(SAE_CODES, context.partition_key),
                data_version=fingerprint(rows=rows, codes=codes_fingerprint),
                inputs={**pool, **sae_record},
                entries=entries,
                tables={codes_table: sealed(store, codes_table)},
                about={
                    "rows": rows,
                    "encoder": encoder_fingerprint,
                    "codes": codes_fingerprint,
                    **shown,
                },
            )
            yield dg.MaterializeResult(
                asset_key=SAE_CODES,
                data_version=dg.DataVersion(record.data_version),
                metadata={
                    **work,
                    **new_rows,
                    **_code_figures(store, codes_table),
                    **provenance(records.publish(record), record),
                },
            )

    return encode


def _new_rows_quality(
    report: SyncReport, sae: "SparseAutoencoder | None", k: int | None
) -> dict[str, Any]:
    """How well the SAE explains the samples that got codes in this run, from a draw of them.

    The SAE is pinned while its pool moves on, so this is where a drift is seen.
    """
    drawn = [states for _, states in sorted(report.drawn.items()) if len(states)]
    if sae is None or sum(map(len, drawn)) < NEW_ROWS_TOKENS:
        return {}
    from mona.sae_quality import measure

    quality = measure(sae, drawn, k)
    return {NEW_ROWS_FVU: quality.fvu, "new rows measured (tokens)": quality.tokens}


def _work_metadata(report: SyncReport, seconds: float) -> dict[str, Any]:
    rate = report.forwarded_tokens / seconds if report.forwarded_tokens else 0.0
    return {
        "dagster/row_count": report.samples,
        "samples run through the model": report.forwarded,
        "tokens run through the model": report.forwarded_tokens,
        "samples encoded from cached tokens": report.from_cache,
        "samples removed": report.removed,
        "seconds": round(seconds, 1),
        "tokens per second": round(rate, 1),
        "share of batch slots holding a token": round(
            report.forwarded_tokens / report.padded_tokens, 4
        )
        if report.padded_tokens
        else 1.0,
        **({"token cache": report.cache_refused} if report.cache_refused else {}),
    }


def _activation_figures(store: Store, table: str, max_length: int) -> dict[str, Any]:
    from mona.plots import norm_histogram

    rows = store.read(table, ["n_tokens", "length", "norm"])
    n_tokens = rows.column("n_tokens").to_numpy()
    return {
        "counted tokens": int(n_tokens.sum()),
        "truncated samples": int((rows.column("length").to_numpy() > max_length).sum()),
        "samples without a counted token": int((n_tokens == 0).sum()),
        "activation norms": picture(
            norm_histogram(rows.column("norm").to_numpy()), "mean residual-stream norm a sample"
        ),
    }


def _code_figures(store: Store, table: str) -> dict[str, Any]:
    from mona.plots import nonzeros_histogram

    counts = [
        np.diff(batch.column("indices").offsets.to_numpy())
        for batch in store.scan(table, ["indices"])
    ]
    nonzeros = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    return {
        "non-zeros a sample": float(nonzeros.mean()) if len(nonzeros) else 0.0,
        "empty codes": int((nonzeros == 0).sum()),
        "non-zeros": picture(nonzeros_histogram(nonzeros), "non-zero latents a sample"),
    }
