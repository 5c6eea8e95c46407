"""The dataset card of a subset: what its records say, whatever the configuration and the pools
hold by now, without the samples that were withdrawn since. The text is `mona.dataset_card`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from assets.keys import RAW_POOL, label
from assets.subset import TEST_ROWS, origin_counts
from mona.cards import CardSource
from mona.dataset_card import dataset_card
from mona.errors import RequestError
from mona.pool import Withdrawn
from mona.spec import RecipeSpec
from orchestration.lineage import chain
from resources.asset_partition import AssetPartition
from resources.records import Record, Records
from resources.store import Store
from resources.withdrawals import Withdrawal, shown_reasons


def subset_card(records: Records, store: Store, asset: str) -> str:
    """The card of a selection's current record. RequestError when it was never made, or when
    nothing of it is left."""
    first, *above = chain(records, asset)
    subset = first.record
    chosen = AssetPartition.parse(asset)
    (owner, recipe), (dataset, model) = chosen.subset, chosen.pair
    pool = records.get(subset.inputs[label(RAW_POOL, dataset)])
    ((table, seal),) = subset.tables.items()
    columns = ["sample_id", "length", "origins"]
    rows = store.read(table, columns, version=seal.version).to_pylist()
    ledger = records.ledger
    gone = ledger.gone_from(dataset)
    covers = ledger.forbidden().covers
    left = [
        {**row, "origins": [o for o in row["origins"] if not covers(o["source"])]}
        for row in rows
        if row["sample_id"] not in gone
    ]
    if not left:
        raise RequestError(f"{asset}: every sample of it was withdrawn")
    ids = {row["sample_id"] for row in rows}
    labels = {origin["source"] for row in rows for origin in row["origins"]}
    by = [found for found in ledger.all() if _took(found, dataset, ids, labels)]
    return dataset_card(
        name=f"{owner}/{recipe} from {dataset}",
        target=owner,
        recipe=RecipeSpec.model_validate(subset.about["recipe"]),
        samples=len(left),
        tokens=sum(row["length"] for row in left),
        pool_samples=int(pool.about["rows"]),
        test_rows=subset.about.get(TEST_ROWS, 0),
        sources=[
            CardSource(c["source"], c["licence"], c["samples"])
            for c in origin_counts(row["origins"] for row in left)
        ],
        files=pool.about["sources"],
        encoder=_encoder(model, {link.record.kind: link.record for link in above}),
        withdrawn=len(rows) - len(left),
        reasons=shown_reasons(by),
        provenance={
            "record": first.digest,
            "chosen ids": subset.data_version,
            "pool": pool.data_version,
        },
    )


def _took(withdrawal: Withdrawal, dataset: str, ids: Set[str], labels: Set[str]) -> bool:
    """Whether a withdrawal took a row with one of these ids, or one of these sources' pairs."""
    if withdrawal.source is None:
        return not ids.isdisjoint(withdrawal.samples.get(dataset, ()))
    return any(map(Withdrawn(sources=(withdrawal.source,)).covers, labels))


def _encoder(model: str, above: Mapping[str, Record]) -> dict[str, str]:
    """The model and the SAE that chose; of a control, the model that counted its tokens."""
    encoding = above.get("sae_codes") or above["activations"]
    named = encoding.about.get("language model")
    shown = {
        "model": f"{named} (entry {model})" if named else model,
        "encoder": str(encoding.about["encoder"]),
    }
    if "layer" in encoding.about:
        shown["layer"] = str(encoding.about["layer"])
    if "sae" in above and "codes" in encoding.about:
        sae = above["sae"].about
        ((how, origin),) = sae["origin"].items()
        shown |= {"SAE": f"{sae['sae']}, {how} {_flat(origin)}", "codes": encoding.about["codes"]}
    return shown


def _flat(origin: Any) -> str:
    if isinstance(origin, Mapping):
        return ", ".join(str(value) for value in origin.values())
    return ", ".join(map(str, origin))
