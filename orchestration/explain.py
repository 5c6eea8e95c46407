"""Why a sample has its score in a selection: what `mona explain` shows.

Belongs here: finding what a selection was scored with, from its record, whatever the pools hold
by now. The arithmetic is `mona.explanation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from assets.keys import CONTROLS, RAW_POOL, SAE, SAE_CODES, label
from assets.prototype import read_prototype
from assets.raw_pool import pool_table
from mona.codes import from_arrow
from mona.errors import RequestError
from mona.explanation import Context, Part, Use, parts, uses
from mona.sample import from_records
from mona.spec import ModelSpec, RecipeSpec
from resources.asset_partition import AssetPartition
from resources.models import Models
from resources.records import Record, Records
from resources.snapshot import Snapshot
from resources.store import Store

_EXAMPLES = 3  # pool samples that show what a latent means
_BATCH_TOKENS = 2_048


@dataclass(frozen=True, slots=True)
class Latent:
    """One latent's part of the score, where in the sample it is strongest, and what it means:
    its use in the pool with the strongest tokens of the samples where it is strongest."""

    part: Part
    here: Context | None
    use: Use
    means: list[Context]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A sample's score, its rank (None: not chosen), how many latents make the score, how many
    samples were scored, and the latents with the largest parts."""

    score: float
    rank: int | None
    shared: int
    pool_samples: int
    latents: list[Latent]


def explain(
    records: Records,
    store: Store,
    shelf: Models,
    models: Mapping[str, ModelSpec],
    asset: str,
    sample_id: str,
    count: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Explanation:
    """The `count` latents that made most of a sample's score in the current selection `asset`.

    Chosen or not, any sample of the pool it was chosen from can be asked about. `progress` is
    told of samples run through the model. RequestError where the selection or the sample is
    not there, where its scores have no parts, and where the model's entry changed since.
    """
    subset = _current(records, asset)
    of = AssetPartition.parse(asset)
    (owner, recipe_name), (dataset, model) = of.subset, of.pair
    recipe = RecipeSpec.model_validate(subset.about["recipe"])
    if owner == CONTROLS or recipe.representation != "codes":
        raise RequestError(
            f"{owner}/{recipe_name} was not chosen by latents: only a target's recipe with "
            "representation 'codes' can be explained"
        )
    read = Snapshot(store, records, dict(subset.inputs))
    encoded = label(SAE_CODES, of.partition)
    codes_record = read.record(encoded)
    (codes_table,) = codes_record.tables
    codes = read.table(encoded, codes_table)
    pool = read.table(label(RAW_POOL, dataset), pool_table(dataset))
    vector = read_prototype(read, owner, model, str(subset.about["codes"]), "codes")
    ids = codes.sample_ids.filter(pc.is_in(codes.sample_ids, pool.sample_ids))
    if pc.index(ids, sample_id).as_py() < 0:
        raise RequestError(
            f"{owner}/{recipe_name} of {of.partition} scored no sample '{sample_id}'"
        )
    columns = ["l1", "indices", "values"]
    every = parts(from_arrow(codes.rows(columns, [sample_id])), vector, recipe.similarity)
    shown = every[:count]
    scan = (
        batch.filter(pc.is_in(batch.column("sample_id"), ids))
        for batch in codes.scan(["sample_id", *columns])
    )
    found = uses(scan, [part.latent for part in shown], _EXAMPLES)
    wanted: dict[str, list[int]] = {sample_id: [part.latent for part in shown]}
    for part, use in zip(shown, found, strict=True):
        for _, strongest in use.strongest:
            wanted.setdefault(strongest, [])
            if part.latent not in wanted[strongest]:
                wanted[strongest].append(part.latent)
    rows = pool.rows(["messages"], list(wanted))
    messages = dict(zip(wanted, rows.column("messages").to_pylist(), strict=True))
    sae = records.get(codes_record.inputs[label(SAE, model)])
    at = _contexts(shelf, model, models[model], sae, codes_record, messages, wanted, progress)
    ((table, seal),) = subset.tables.items()
    chosen = store.read(
        table, ["rank"], version=seal.version, where=f"sample_id = '{sample_id}'"
    ).column("rank")
    return Explanation(
        score=sum(part.part for part in every),
        rank=chosen[0].as_py() if len(chosen) else None,
        shared=len(every),
        pool_samples=len(ids),
        latents=[
            Latent(
                part,
                at.get((sample_id, part.latent)),
                use,
                [
                    at[strongest, part.latent]
                    for _, strongest in use.strongest
                    if (strongest, part.latent) in at
                ],
            )
            for part, use in zip(shown, found, strict=True)
        ],
    )


def _current(records: Records, asset: str) -> Record:
    digest = records.current(asset)
    if digest is None:
        raise RequestError(f"{asset} was never made: mona run first")
    return records.get(digest)


def _contexts(
    shelf: Models,
    name: str,
    model: ModelSpec,
    sae_record: Record,
    codes_record: Record,
    messages: Mapping[str, Sequence[dict[str, str]]],
    wanted: Mapping[str, Sequence[int]],
    progress: Callable[[int], None],
) -> dict[tuple[str, int], Context]:
    """(sample id, latent) -> its strongest token, from one forward pass of each sample."""
    from mona.encoder import plan_batches
    from mona.explanation import contexts

    digest = str(sae_record.about["sae"])
    resolved = shelf.resolve(name, model)
    if resolved.codes(digest) != codes_record.about["codes"]:
        raise RequestError(f"the entry of model '{name}' changed since: mona run first")
    encoder, sae = shelf.encoder(resolved), shelf.sae(name, digest)
    ids = list(wanted)
    rows = [encoder.renderer.render(from_records(messages[i])) for i in ids]
    found: dict[tuple[str, int], Context] = {}
    for batch in plan_batches([len(row.ids) for row in rows], _BATCH_TOKENS):
        made = encoder.forward([rows[i] for i in batch])
        for place, i in enumerate(batch):
            states = made.states[int(made.offsets[place]) : int(made.offsets[place + 1])]
            for latent, context in zip(
                wanted[ids[i]],
                contexts(sae, encoder.renderer.tokenizer, rows[i], states, wanted[ids[i]], model.k),
                strict=True,
            ):
                if context is not None:
                    found[ids[i], latent] = context
        progress(len(batch))
    return found
