"""What fed what: questions answered from the provenance records and the pinned tables.

Belongs here: walking records, whole and past ones included. Whether the records are still
true is `orchestration.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from assets.subset import origin_counts
from mona.errors import RequestError
from resources.records import Record, Records
from resources.store import Store


@dataclass(frozen=True, slots=True)
class Link:
    """A record in the chain above an asset partition; `depth` is its distance from it."""

    depth: int
    digest: str
    record: Record


@dataclass(frozen=True, slots=True)
class Use:
    """One sample in one subset that was ever published, and the fine-tunes of that subset."""

    subset: str
    record: str
    current: bool
    sample_id: str
    rank: int
    score: float
    origins: list[dict[str, Any]]
    finetunes: list[str]


def kind(asset: str) -> str:
    """The last part of an asset's name: raw_pool, selection, finetune."""
    return asset.split("[")[0].split("/")[-1]


def chain(records: Records, asset: str) -> list[Link]:
    """The current record of an asset partition and all above it, each once, nearest first.

    RequestError when it was never made.
    """
    start = records.current(asset)
    if start is None:
        raise RequestError(f"{asset} was never made")
    found: dict[str, Link] = {}
    reached = [(0, start)]
    while reached:
        depth, digest = reached.pop(0)
        if digest not in found:
            found[digest] = Link(depth, digest, records.get(digest))
            reached += [(depth + 1, parent) for parent in found[digest].record.inputs.values()]
    return list(found.values())


def uses_of_sample(records: Records, store: Store, sample_id: str) -> list[Use]:
    """Every use of a sample, in past subsets too. RequestError when no id has this form."""
    if not sample_id.isalnum():
        raise RequestError(f"'{sample_id}' is no sample id")
    return list(_uses(records, store, where=f"sample_id = '{sample_id}'"))


def uses_of_origin(records: Records, store: Store, field: str, name: str) -> list[Use]:
    """Every use of samples of which one origin's `field` ('source' or 'licence') is `name`;
    a source also matches its labels (NAME/folder)."""

    def matches(row: dict[str, Any]) -> bool:
        values = [str(origin[field]) for origin in row["origins"]]
        return any(
            value == name or (field == "source" and value.startswith(f"{name}/"))
            for value in values
        )

    return [use for use in _uses(records, store) if matches({"origins": use.origins})]


def _uses(records: Records, store: Store, where: str | None = None) -> Iterator[Use]:
    everything = {digest: records.get(digest) for digest in records.digests()}
    current = set(records.pointers().values())
    tuned: dict[str, list[str]] = {}
    for digest, record in everything.items():
        if kind(record.asset) == "finetune":
            for parent in record.inputs.values():
                tuned.setdefault(parent, []).append(f"{record.asset} {digest[:16]}")
    for digest, record in everything.items():
        if kind(record.asset) != "selection":
            continue
        for name, seal in record.tables.items():
            columns = ["sample_id", "rank", "score", "origins"]
            rows = store.read(name, columns, version=seal.version, where=where)
            for row in rows.to_pylist():
                yield Use(
                    record.asset,
                    digest,
                    digest in current,
                    row["sample_id"],
                    row["rank"],
                    row["score"],
                    row["origins"],
                    sorted(tuned.get(digest, [])),
                )


def subset_origins(store: Store, record: Record) -> list[dict[str, Any]]:
    """(source, licence, samples) of a subset, most first, from its pinned table."""
    ((name, seal),) = record.tables.items()
    return origin_counts(store.read(name, ["origins"], version=seal.version)[0].to_pylist())
