"""`sae` [model]: the SAE of one model, loaded or trained here, with its quality record.

It has no edge from `raw_pool`: a trained SAE is pinned to the pool it was trained on, which
its provenance names; a refreshed pool does not retrain it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.describe import picture
from assets.entries import entries_read
from assets.keys import RAW_POOL, SAE, Partitions, label, model_entry
from assets.pools import GPU_POOL
from assets.raw_pool import pool_table
from assets.retries import retried
from assets.step import finished
from mona.fingerprint import fingerprint, rows_digest
from mona.spec import ModelSpec, RecipeSpec, views_read
from resources.encoding_tables import pool_population
from resources.encodings import Encodings
from resources.engine import Engine, progress_bar
from resources.models import Models, ResolvedModel
from resources.records import Records, folder_files
from resources.snapshot import Snapshot
from resources.store import Store
from resources.token_sample import TokenSample

if TYPE_CHECKING:
    import torch

    from mona.sae import SparseAutoencoder
    from mona.sae_quality import Quality


def build_sae(
    models: Mapping[str, ModelSpec], recipes: Mapping[str, RecipeSpec], partitions: Partitions
) -> dg.AssetsDefinition:
    """The asset for all configured models."""
    # The samples it runs the model on are not run again for the views that recipes read.
    views = views_read(recipes.values())

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
        name = context.partition_key
        datasets = models[name].sae.sample_datasets
        read = Snapshot.of(store, records, (label(RAW_POOL, dataset) for dataset in datasets))
        model = shelf.resolve(name, models[name])
        entries = entries_read(shelf, name, model.spec, "encoder", "sae")
        pools = [
            Encodings.of_model(
                pool_population(dataset),
                read.table(label(RAW_POOL, dataset), pool_table(dataset)),
                model,
                views,
                shelf,
                store,
                engine,
            )
            for dataset in datasets
        ]
        with store.lock(f"sae.{name}"), _locks(store, pools):
            digest, made, figures = _make(model, views, pools, shelf, store, engine)
            return finished(
                read,
                SAE,
                name,
                digest,
                entries=entries,
                files=folder_files(shelf.home, shelf.sae_path(name, digest)),
                about={
                    "encoder": model.encoder,
                    "sae": digest,
                    "origin": figures["origin"],
                    "revisions": shelf.revisions(model.spec),
                },
                shown=_shown(made, figures, shelf.revisions(model.spec)),
            )

    return sae


def _make(
    model: ResolvedModel,
    views: Sequence[str],
    pools: list[Encodings],
    shelf: Models,
    store: Store,
    engine: Engine,
) -> "tuple[str, SparseAutoencoder, dict[str, Any]]":
    """Trains or loads the SAE, measures and keeps it: (digest, SAE, figures)."""
    from mona.sae_quality import measure

    spec = model.spec.sae
    read = {pool.population.name: rows_digest(pool.sample_ids.to_pylist()) for pool in pools}
    sample = TokenSample(pools, spec.train.seed if spec.train else 0, spec.quality_tokens)
    absolute = shelf.encoder(model, views).layer
    layers: dict[int, float] = {}
    if spec.train is not None:
        made = _train(model, sample, read, store, engine)
        origin: dict[str, Any] = {"trained on": spec.train.datasets}
    else:
        made, origin = _load(model, views, shelf)
    quality = measure(made, sample.held_out, model.spec.k)
    if spec.load is not None:
        layers = _layer_fvus(model, made, sample, shelf)
    figures = {
        "encoder": model.encoder,
        "origin": origin,
        "pools": read,
        "settings": spec.model_dump(mode="json"),
        "quality": _figures(quality),
        "layer": absolute,
        "fvu_by_layer": {str(layer): fvu for layer, fvu in layers.items()},
    }
    return shelf.keep_sae(model.name, made, figures), made, figures


def _figures(quality: "Quality") -> dict[str, Any]:
    return {
        "fvu": quality.fvu,
        "l0": quality.l0,
        "dead_share": quality.dead_share,
        "tokens": quality.tokens,
    }


def _shown(
    made: "SparseAutoencoder", figures: Mapping[str, Any], revisions: Mapping[str, str]
) -> dict[str, Any]:
    """What Dagster's UI shows of an SAE."""
    from mona.plots import sae_quality

    quality, layers = figures["quality"], figures["fvu_by_layer"]
    by_layer = {int(layer): fvu for layer, fvu in layers.items()}
    return {
        "fraction of variance unexplained": quality["fvu"],
        "active latents a token (L0)": quality["l0"],
        "dead latents (share, on held-out tokens)": quality["dead_share"],
        "held-out tokens": quality["tokens"],
        "latents": made.latents,
        "width": made.d,
        "activation": made.activation,
        **{f"hub: {part}": at for part, at in revisions.items()},
        **({"fvu by layer": layers} if layers else {}),
        "quality": picture(
            sae_quality(by_layer or {figures["layer"]: quality["fvu"]}), "unexplained variance"
        ),
    }


@contextmanager
def _locks(store: Store, pools: list[Encodings]) -> Iterator[None]:
    """Holds every pool's table; one that is taken releases those before it."""
    with ExitStack() as stack:
        for pool in pools:
            stack.enter_context(store.lock(pool.table))
        yield


def _train(
    model: ResolvedModel,
    sample: TokenSample,
    read: Mapping[str, str],
    store: Store,
    engine: Engine,
) -> "SparseAutoencoder":
    from mona.sae_training import train_sae

    name, spec = model.name, model.spec.sae.train
    assert spec is not None
    # A checkpoint is of use only to the very same training.
    run = fingerprint(settings=spec.model_dump(mode="json"), pools=dict(read), e=model.encoder)
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


def _load(
    model: ResolvedModel, views: Sequence[str], shelf: Models
) -> "tuple[SparseAutoencoder, dict[str, Any]]":
    from mona.sae_formats import load_pretrained

    spec = model.spec.sae.load
    assert spec is not None
    encoder = shelf.encoder(model, views)
    loaded = load_pretrained(
        spec,
        shelf.sae_folder(spec, f"models.{model.name}.sae.load"),
        layer=encoder.layer,
        width=encoder.width,
        layer_norm=encoder.uses_layer_norm,
    )
    origin = {"loaded from": spec.model_dump(mode="json", exclude_none=True, exclude={"path"})}
    return loaded, origin


def _layer_fvus(
    model: ResolvedModel, made: "SparseAutoencoder", sample: TokenSample, shelf: Models
) -> dict[int, float]:
    """FVU of a loaded SAE at its layer and the two beside it, on the held-out samples, so
    that a layer index off by one is seen."""
    from mona.encoder import plan_batches
    from mona.sae_quality import measure_layers
    from mona.sample import from_records
    from mona.tokens import SetAside

    encoder = shelf.encoder_with_neighbours(model)
    messages = []
    for pool, position in sample.held_out_positions:
        row = sample.encodings[pool].samples.take([int(position)], ["messages"])
        messages.append(from_records(row.column("messages")[0].as_py()))
    rendered = encoder.renderer.render_batch(messages)
    rows = [row for row in rendered if not isinstance(row, SetAside)]
    batches = (
        encoder.forward_layers([rows[i] for i in batch], encoder.neighbours)
        for batch in plan_batches([len(row.ids) for row in rows], 1_024)
    )
    return measure_layers(made, batches, model.spec.k)
