"""What fed what: questions answered from the provenance records and the pinned tables.

Belongs here: walking records, whole and past ones included. Whether the records are still
true is `orchestration.verify`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from assets.subset import origin_counts
from mona.errors import RequestError
from resources.purge import versions
from resources.records import Record, Records
from resources.store import Store

_IDS_PER_SCAN = 1_000
_OPERATORS = re.compile(r"\s+(?:and|or|with)\s+")
_GNU = re.compile(r"^((?:a|l)?gpl-[\d.]+|gfdl-[\d.]+)$")


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
    return uses_of_samples(every_record(records), store, [sample_id], records.pointers())


def uses_of_samples(
    known: Mapping[str, Record],
    store: Store,
    sample_ids: Sequence[str],
    pointers: Mapping[str, str] = MappingProxyType({}),
) -> list[Use]:
    """Every use of these samples. known: all records by digest; pointers: asset partition -> its
    current one. RequestError when no id has the form of one of them."""
    for sample_id in sample_ids:
        if not sample_id.isalnum():
            raise RequestError(f"'{sample_id}' is no sample id")
    found: list[Use] = []
    for start in range(0, len(sample_ids), _IDS_PER_SCAN):
        listed = ", ".join(f"'{i}'" for i in sample_ids[start : start + _IDS_PER_SCAN])
        found += _uses(known, store, pointers, where=f"sample_id IN ({listed})")
    return found


def uses_of_origin(records: Records, store: Store, field: str, name: str) -> list[Use]:
    """Every use of samples of which one origin's `field` is `name`: a 'source', which also
    matches its labels (NAME/folder), or a 'licence', which also matches expressions it is in."""
    return [
        use
        for use in _uses(every_record(records), store, records.pointers())
        if any(names_origin(field, name, str(origin[field])) for origin in use.origins)
    ]


def names_origin(field: str, asked: str, value: str) -> bool:
    """Whether `asked` means an origin's source or licence called `value`."""
    if field == "licence":
        return _licences(asked) <= _licences(value)
    return value == asked or value.startswith(f"{asked}/")


def _licences(expression: str) -> frozenset[str]:
    """The identifiers in a licence expression, in the one form that all spellings of theirs have
    that SPDX takes for the same: they have no case, `+` is `-or-later`, and the GNU names without
    an ending are their `-only`. A name in words reads as if it had hyphens."""
    plain = expression.casefold().replace("(", " ").replace(")", " ").strip()
    names = ("-".join(name.split()) for name in _OPERATORS.split(plain))
    return frozenset(_GNU.sub(r"\1-only", re.sub(r"\+$", "-or-later", name)) for name in names)


def origins_known(records: Records, store: Store, field: str) -> dict[str, int]:
    """Every source or licence that a stored pool or subset has -> the samples that have it in
    the pools as they are, 0 for those of the past; most first."""
    current = set(records.pointers().values())
    wanted: dict[tuple[str, int], bool] = {}
    for digest, record in every_record(records).items():
        if record.kind in ("raw_pool", "selection"):
            for name, seal in record.tables.items():
                now = digest in current and record.kind == "raw_pool"
                wanted[name, seal.version] = now or wanted.get((name, seal.version), False)
    found: dict[str, int] = {}
    for (name, version), now in wanted.items():
        if not store.exists(name) or "origins" not in store.open(name).schema.names:
            continue
        if version not in versions(store, name):
            continue
        for batch in store.scan(name, ["origins"], version=version):
            for origins in batch.column(0).to_pylist():
                for value in {str(origin[field]) for origin in origins}:
                    found[value] = found.get(value, 0) + now
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def every_record(records: Records) -> dict[str, Record]:
    """All that were ever published, by digest. WorkError where one can't be read."""
    return {digest: records.get(digest) for digest in records.digests()}


def _uses(
    known: Mapping[str, Record],
    store: Store,
    pointers: Mapping[str, str],
    where: str | None = None,
) -> Iterator[Use]:
    current = set(pointers.values())
    tuned: dict[str, list[str]] = {}
    for digest, record in known.items():
        if record.kind == "finetune":
            for parent in record.inputs.values():
                tuned.setdefault(parent, []).append(f"{record.asset} {digest[:16]}")
    for digest, record in known.items():
        if record.kind != "selection":
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
