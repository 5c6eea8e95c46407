"""What one step reads: the records that were current when it began, and the tables as those
records sealed them.

A step takes one snapshot, at its beginning, and hands it to everything that reads. So it reads
what its own record will say it read, whatever is committed, replaced or edited beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mona.errors import WorkError
from resources.records import Record, Records
from resources.store import Store
from resources.table_at import TableAt


@dataclass(frozen=True)
class Snapshot:
    """Asset partitions at the records they had: `inputs` maps each to its record's digest."""

    store: Store
    records: Records
    inputs: dict[str, str]
    _read: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, records: Records, assets: Iterable[str]) -> Snapshot:
        """The current records of these asset partitions. WorkError for one without a record."""
        found = {}
        for asset in assets:
            digest = records.current(asset)
            if digest is None:
                raise WorkError(f"{asset} has no provenance record: materialise it first")
            found[asset] = digest
        return cls(store, records, found)

    def record(self, asset: str) -> Record:
        """The record of one of the asset partitions."""
        if asset not in self._read:
            self._read[asset] = self.records.get(self.inputs[asset])
        return self._read[asset]

    def table(self, asset: str, name: str) -> TableAt:
        """A table of one of them as its record sealed it. WorkError where that version is gone,
        or is another table's by now."""
        seal = self.record(asset).tables.get(name)
        if seal is None:
            raise WorkError(f"the record of {asset} names no table '{name}': materialise it anew")
        table = self.store.at(name, seal.version)
        if set(table.files) != set(seal.files):
            raise WorkError(
                f"table '{name}' version {seal.version} is not the one that {asset} recorded: "
                "it was made anew outside; materialise it anew"
            )
        return table

    def only(self, *assets: str) -> dict[str, str]:
        """The inputs of a record that read a part of the snapshot."""
        return {asset: self.inputs[asset] for asset in assets}
