"""Tables that are not what their records sealed, found before a step reads them: which are gone,
and which are damaged. All that is stored is looked at by `orchestration.verify`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

from assets.keys import label
from mona.errors import MonaError, WorkError
from resources.records import Records, TableSeal, seal_faults
from resources.store import Store
from resources.tables import kind_of

if TYPE_CHECKING:
    from orchestration.planner import Standing


def lost_tables(
    records: Records, store: Store, tables_of: dict[str, frozenset[str]]
) -> dict[str, str]:
    """Asset partition -> a table of its current record that has no folder any more. tables_of:
    the tables of records read before, by digest; what is read now is added."""
    there = store.folders()
    lost = {}
    for asset, digest in records.pointers().items():
        if digest not in tables_of:
            try:
                tables_of[digest] = frozenset(records.get(digest).tables)
            except (MonaError, ValueError):
                continue  # verify's to report
        gone = sorted(tables_of[digest] - there)
        if gone:
            lost[asset] = gone[0]
    return lost


class Soundness:
    """Whether the tables that steps are about to read are as sealed; each is read once."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._records = standing.records
        self._store = Store(root=standing.config.store_root, home=self._records.home)
        self._checked: set[tuple[str, int]] = set()

    def require_manifests(self, assets: Iterable[str]) -> None:
        """WorkError naming the first table whose sealed version can't be opened as it was: lance
        would read an older one without a word."""
        pointers = self._records.pointers()
        there = self._store.folders()
        for asset in assets:
            for name, seal in self._tables(pointers.get(asset)):
                if name in there:
                    self._require(asset, name, seal, manifest_only=True)

    def require_inputs(self, key: dg.AssetKey, partition: str | None) -> None:
        """WorkError naming the first table that a step reads, or appends to, of which a byte is
        not as it was. Token caches are not looked at: they may be larger than all else, and what
        is computed from one is checked against its row's size."""
        pointers = self._records.pointers()
        there = self._store.folders()
        asset = label(key, partition)
        read = [label(*parent) for parent in self._standing.parents(key, partition)]
        for source in (asset, *read):
            for name, seal in self._tables(pointers.get(source)):
                kind = kind_of(name)
                if name not in there or kind is None or (kind.grows and kind.undecoded):
                    continue  # what is gone is made anew
                if source == asset and not kind.grows:
                    continue  # replaced whole
                if (name, seal.version) not in self._checked:
                    self._require(source, name, seal, manifest_only=False)
                    self._checked.add((name, seal.version))

    def _tables(self, digest: str | None) -> list[tuple[str, TableSeal]]:
        return sorted(self._records.get(digest).tables.items()) if digest is not None else []

    def _require(self, asset: str, name: str, seal: TableSeal, *, manifest_only: bool) -> None:
        for path, problem in seal_faults(self._store, name, seal, manifest_only=manifest_only):
            found = f"{path} of version {seal.version}, which {asset} stands on: {problem}"
            raise WorkError(self._store.damage(name, found))
