"""`sae` [model]: the SAE of one model, loaded or trained here, with its quality record.

It has no edge from `raw_pool`: a trained SAE is pinned to the pool it was trained on, which
its provenance names; a refreshed pool does not retrain it.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.describe import picture, provenance
from assets.entries import entries_read
from assets.keys import RAW_POOL, SAE, Partitions, label, model_entry
from assets.pools import GPU_POOL
from assets.raw_pool import pool_table
from assets.retries import retried
from mona.errors import RequestError
from mona.fingerprint import fingerprint, rows_digest
from mona.spec import ModelSpec
from resources.encodings import Encodings, pool_population
from resources.engine import Engine, progress_bar
from resources.models import Models
from resources.records import Record, Records, folder_files
from resources.store import Store
from resources.token_sample import TokenSample

if TYPE_CHECKING:
    import torch

    from mona.sae import SparseAutoencoder


def build_sae(models: Mapping[str, ModelSpec], partitions: Partitions) -> dg.AssetsDefinition:
    """The asset for all configured models."""

    @dg.asset(
        key=SAE,
        partitions_def=partitions.model,
        deps=[model_entry("encoder"), model_entry("sae")],
        group_name="models",
        code_version="1",
        pool=GPU_POOL,
        description="The sparse autoencoder of one model, with its quality on held-out tokens.",
    )
    @retried
    def sae(
        context: dg.AssetExecutionContext,
        shelf: Models,
        store: Store,
        engine: Engine,
        records: Records,
    ) -> dg.MaterializeResult[Any]:
        from mona.sae_quality import measure

        name = context.partition_key
        model = models[name]
        encoder_fingerprint = shelf.encoder_fingerprint(name, model)
        pools = [
            _pool(dataset, name, model, shelf, store, engine)
            for dataset in model.sae.sample_datasets
        ]
        inputs = records.read_at(label(RAW_POOL, d) for d in model.sae.sample_datasets)
        entries = entries_read(shelf, name, model, "encoder", "sae")
        read = {pool.population.name: rows_digest(pool.sample_ids.to_pylist()) for pool in pools}
        seed = model.sae.train.seed if model.sae.train else 0
        sample = TokenSample(pools, seed, model.sae.quality_tokens)
        with store.lock(f"sae.{name}"), _locks(store, pools):
            layers: dict[int, float] = {}
            absolute = shelf.encoder(name, model).layer
            if model.sae.train is not None:
                made = _train(name, model, sample, read, encoder_fingerprint, store, engine)
                origin: dict[str, Any] = {"trained on": model.sae.train.datasets}
            else:
                made, origin = _load(name, model, shelf)
            quality = measure(made, sample.held_out, model.k)
            if model.sae.load is not None:
                layers = _layer_fvus(name, model, made, sample, shelf, store)
            kept = {
                "encoder": encoder_fingerprint,
                "origin": origin,
                "pools": read,
                "settings": model.sae.model_dump(mode="json"),
                "quality": {
                    "fvu": quality.fvu,
                    "l0": quality.l0,
                    "dead_share": quality.dead_share,
                    "tokens": quality.tokens,
                },
                "layer": absolute,
                "fvu_by_layer": {str(layer): fvu for layer, fvu in layers.items()},
            }
            digest = shelf.publish_sae(name, made, kept)
        record = Record(
            asset=label(SAE, name),
            data_version=digest,
            inputs=inputs,
            entries=entries,
            files=folder_files(shelf.home, shelf.sae_path(name, digest)),
            about={
                "encoder": encoder_fingerprint,
                "sae": digest,
                "origin": origin,
                "revisions": shelf.revisions(model),
            },
        )
        from mona.plots import sae_quality

        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest),
            metadata={
                "fraction of variance unexplained": quality.fvu,
                "active latents a token (L0)": quality.l0,
                "dead latents (share, on held-out tokens)": quality.dead_share,
                "held-out tokens": quality.tokens,
                "latents": made.latents,
                "width": made.d,
                "activation": made.activation,
                **{f"hub: {part}": at for part, at in shelf.revisions(model).items()},
                **({"fvu by layer": {str(i): fvu for i, fvu in layers.items()}} if layers else {}),
                "quality": picture(
                    sae_quality(layers or {absolute: quality.fvu}), "unexplained variance"
                ),
                **provenance(records.publish(record), record),
            },
        )

    return sae


def _pool(
    dataset: str, name: str, model: ModelSpec, shelf: Models, store: Store, engine: Engine
) -> Encodings:
    if not store.exists(pool_table(dataset)):
        raise RequestError(f"sae of '{name}' reads dataset '{dataset}': materialise raw_pool first")
    return Encodings.of_model(pool_population(dataset), name, model, shelf, store, engine)


@contextmanager
def _locks(store: Store, pools: list[Encodings]) -> Iterator[None]:
    """Holds every pool's table; one that is taken releases those before it."""
    with ExitStack() as stack:
        for pool in pools:
            stack.enter_context(store.lock(pool.table))
        yield


def _train(
    name: str,
    model: ModelSpec,
    sample: TokenSample,
    read: Mapping[str, str],
    encoder_fingerprint: str,
    store: Store,
    engine: Engine,
) -> "SparseAutoencoder":
    from mona.sae_training import train_sae

    spec = model.sae.train
    assert spec is not None
    # A checkpoint is of use only to the very same training.
    run = fingerprint(
        settings=spec.model_dump(mode="json"), pools=dict(read), e=encoder_fingerprint
    )
    total = sum(len(pool.sample_ids) for pool in sample.encodings)
    with progress_bar(f"running {name} on the SAE's token sample", total, "samples") as advance:
        sample.run_model(spec.tokens, advance)
    width = sample.held_out[0].shape[1]

    def samples(epoch: int) -> "Iterator[torch.Tensor]":
        return sample.training(spec.tokens, epoch)

    with progress_bar(f"training the SAE of {name}", spec.tokens, "tokens") as bar:
        return train_sae(
            samples,
            width,
            spec,
            checkpoint=store.folder("scratch", f"sae.{name}.{run}"),
            device=engine.resolved_device,
            progress=bar,
        )


def _load(name: str, model: ModelSpec, shelf: Models) -> "tuple[SparseAutoencoder, dict[str, Any]]":
    from mona.sae_formats import load_pretrained

    spec = model.sae.load
    assert spec is not None
    where = f"models.{name}.sae.load"
    loaded = load_pretrained(spec, shelf.sae_folder(spec, where))
    origin = {"loaded from": spec.model_dump(mode="json", exclude_none=True, exclude={"path"})}
    return loaded, origin


def _layer_fvus(
    name: str,
    model: ModelSpec,
    made: "SparseAutoencoder",
    sample: TokenSample,
    shelf: Models,
    store: Store,
) -> dict[int, float]:
    """FVU of a loaded SAE at its layer and the two beside it, on the held-out samples, so
    that a layer index off by one is seen."""
    from mona.encoder import plan_batches
    from mona.sae_quality import measure_layers
    from mona.sample import from_records

    encoder = shelf.encoder_with_neighbours(name, model)
    messages = []
    for pool, position in sample.held_out_positions:
        table = sample.encodings[pool].population.samples_table
        row = store.take(table, [int(position)], ["messages"]).column("messages")[0].as_py()
        messages.append(from_records(row))
    rows = [encoder.renderer.render(conversation) for conversation in messages]
    batches = (
        encoder.forward_layers([rows[i] for i in batch], encoder.neighbours)
        for batch in plan_batches([len(row.ids) for row in rows], 1_024)
    )
    return measure_layers(made, batches, model.k)
