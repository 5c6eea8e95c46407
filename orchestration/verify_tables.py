"""Are the tables in the store those that the records sealed? Newest versions that no record
sealed, and the tags that keep the versions of the past.

The bytes and rows of a sealed version are `orchestration.verify`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mona.content import ContentDigest
from mona.errors import WorkError
from resources.records import Record, TableSeal, content_at
from resources.store import Store
from resources.tables import TableKind, kind_of

Problem = tuple[str, str, str]  # record, what, problem
_TAG_KEYS = {"branch", "version", "createdAt", "updatedAt", "manifestSize"}


def newest_problems(
    store: Store, current: Mapping[str, Record], names: set[str]
) -> Iterator[Problem]:
    """Tables that were changed since the current records that name them; current: those, by
    digest; names: the tables to look at.

    A table of a kind that grows may be ahead: what counts then is that every row a record names
    is as it was, or left with its sample.
    """
    sealed: dict[str, dict[str, TableSeal]] = {}
    for digest, record in current.items():
        for name, seal in record.tables.items():
            sealed.setdefault(name, {})[digest] = seal
    for name in sorted(sealed.keys() & names):
        seals = sealed[name]
        what = f"table {name}"
        try:
            newest = store.version(name)
            if newest in {seal.version for seal in seals.values()}:
                continue
            for digest, seal in sorted(seals.items()):
                how = _changed(store, name, seal, newest)
                if how:
                    said = f"newest version is {newest}, the record sealed {seal.version}: {how}"
                    yield digest, what, said
        except WorkError as error:
            yield min(seals), what, str(error)


def _changed(store: Store, name: str, seal: TableSeal, newest: int) -> str:
    """How a table's newest version differs from a sealed one; "" where nothing counts."""
    kind = kind_of(name)
    if kind is None or not kind.grows:
        rows, content = content_at(store, name, newest)
        return "" if (rows, content) == (seal.rows, seal.content) else "its rows are others"
    before = store.sample_ids(name, version=seal.version)
    now = store.sample_ids(name, version=newest)
    if pc.count_distinct(now).as_py() != len(now):
        return "a sample comes twice"
    left = before.filter(pc.invert(pc.is_in(before, now)))
    owners = _samples_table(kind, name)
    if len(left) and store.exists(owners):
        still = int(pc.sum(pc.is_in(left, store.sample_ids(owners))).as_py())
        if still:
            return f"{still} of its rows are gone"
    both = before.filter(pc.is_in(before, now))
    then, since = _fragments(store, name, seal.version), _fragments(store, name, newest)
    # A fragment of both versions says the same in both.
    old = _digests(kind, [f for key, f in then.items() if key not in since], both)
    new = _digests(kind, [f for key, f in since.items() if key not in then], both)
    return "" if old == new else "rows of the record have other values"


def _samples_table(kind: TableKind, name: str) -> str:
    """The table of the samples that a kind that grows is computed of."""
    return f"{'pool' if kind.whose == 'dataset' else 'examples'}.{kind.owner(name)}"


def _fragments(store: Store, name: str, version: int) -> dict[tuple[str, ...], Any]:
    """The fragments of a version, by the files they consist of."""
    found = {}
    for fragment in store.at(name, version).dataset.get_fragments():
        files = [file.path for file in fragment.data_files()]
        found[*files, str(fragment.deletion_file())] = fragment
    return found


def _digests(kind: TableKind, fragments: Iterable[Any], ids: pa.Array) -> dict[str, bytes]:
    """Sample id -> digest of its values, of those of the samples that fragments hold."""
    found: dict[str, bytes] = {}
    for fragment in fragments:
        columns = [name for name in fragment.schema.names if name not in kind.undecoded]
        for batch in fragment.to_batches(columns=columns, batch_size=1_024):
            batch = batch.filter(pc.is_in(batch.column("sample_id"), ids))
            for place in range(batch.num_rows):
                row = ContentDigest()
                row.add(batch.slice(place, 1))
                key = batch.column("sample_id")[place].as_py()
                found[key] = bytes.fromhex(row.hexdigest())
    return found


def tag_problems(store: Store, pinned: Mapping[str, Record], names: set[str]) -> Iterator[Problem]:
    """Tags that do not keep what they must; pinned: the records whose versions are tagged, by
    digest; names: the tables to look at."""
    wanted: dict[str, dict[str, tuple[str, int]]] = {}
    for digest, record in pinned.items():
        for name, seal in record.tables.items():
            wanted.setdefault(name, {})[f"record-{digest[:16]}"] = (digest, seal.version)
    for name in sorted(wanted.keys() & names):
        what = f"tags of table {name}"
        try:
            tags = store.tags(name)
            faults = list(_tag_files(store, name))
        except (WorkError, OSError, ValueError, RuntimeError) as error:
            digest = min(digest for digest, _ in wanted[name].values())
            yield digest, what, f"can't be read ({_first_line(error)})"
            continue
        for tag, (digest, version) in sorted(wanted[name].items()):
            if tag not in tags:
                yield digest, f"{what}: {tag}", "is missing"
            elif tags[tag] != version:
                problem = f"keeps version {tags[tag]}, the record sealed {version}"
                yield digest, f"{what}: {tag}", problem
        for tag, problem in faults:
            digest, _ = wanted[name].get(tag, ("", 0))
            yield digest, f"{what}: {tag}", problem


def _tag_files(store: Store, name: str) -> Iterator[tuple[str, str]]:
    """(tag, problem) of tag files that say something else than lance writes; a tag that it can't
    read it does not always name."""
    sizes = store.sizes(name)
    for path in sorted(path for path in sizes if path.startswith("_refs/tags/")):
        tag = path.removeprefix("_refs/tags/").removesuffix(".json")
        try:
            with store.open_file(name, path) as stream:
                noted = json.loads(stream.read())
            if set(noted) - {"metadata"} != _TAG_KEYS:
                raise ValueError("its fields are others")
            _check_tag(noted, sizes)
        except (ValueError, TypeError, AttributeError) as error:
            yield tag, f"its file is damaged ({_first_line(error)})"


def _check_tag(noted: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    if datetime.fromisoformat(noted["createdAt"]) > datetime.fromisoformat(noted["updatedAt"]):
        raise ValueError("it was changed before it was made")
    if noted["branch"] is not None:
        raise ValueError("it names a branch")
    # Newest first by name: lance counts manifests down from the largest 64-bit number.
    manifest = f"_versions/{2**64 - 1 - noted['version']}.manifest"
    if sizes.get(manifest) != noted["manifestSize"]:
        raise ValueError(f"version {noted['version']} has a manifest of another size, or none")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
