"""The name of an asset partition as records, ledgers and people write it: `raw_pool[evals]`,
`adding/mona/selection[evals|tiny]`.

Belongs here: how such a name is made up, read and written, as a text and as a file's name, and
which names each kind of asset goes with. Dagster's keys are `assets.keys`; what an asset holds
is its own module's. Nothing else cuts these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

from mona.errors import WorkError

MODEL_ENTRY_PARTS = ("weights", "encoder", "sae", "codes")
_ENTRY = "model_entry"

# Kind -> the names before it in its path, and those of its partitions.
_Names = tuple[str, ...]
KINDS: Mapping[str, tuple[_Names, _Names]] = MappingProxyType(
    {
        "raw_pool": ((), ("dataset",)),
        "dataset_entry": ((), ("dataset",)),
        "sae": ((), ("model",)),
        _ENTRY: ((), ("model",)),
        "activations": ((), ("dataset", "model")),
        "sae_codes": ((), ("dataset", "model")),
        "entry": (("owner",), ()),
        "examples": (("owner",), ()),
        "prototype": (("owner",), ("model",)),
        "leaderboard": (("owner",), ("dataset", "model")),
        "selection": (("owner", "recipe"), ("dataset", "model")),
        "finetune": (("owner", "recipe"), ("dataset", "model")),
        "evaluation": (("owner", "recipe"), ("dataset", "model")),
    }
)
_SLUG = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class AssetPartition:
    """One partition of an asset; without its partition's names, an asset as a whole.

    path: the asset's key. dataset, model: those that its kind is partitioned by. WorkError for
    what names no asset.
    """

    path: tuple[str, ...]
    dataset: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """So that one that is there is true."""
        given = {"dataset": self.dataset, "model": self.model}
        named = tuple(name for name, value in given.items() if value is not None)
        before, partitions = KINDS.get(self.kind, ((), ()))
        slugs = [*self.path, *(value for value in given.values() if value is not None)]
        if (
            self.kind not in KINDS
            or (self.kind != _ENTRY and len(self.path) != len(before) + 1)
            or (named and named != partitions)
            or not all(map(_SLUG.fullmatch, slugs))
        ):
            raise WorkError(f"{str(self)!r} is no asset partition")

    @classmethod
    def of(cls, path: Sequence[str], partition: str | None = None) -> AssetPartition:
        """From an asset's path and its partition as Dagster has it: `evals`, `evals|tiny`."""
        whole = cls(tuple(path))
        if partition is None:
            return whole
        _, names = KINDS[whole.kind]
        values = partition.split("|")
        if len(values) != len(names):
            raise WorkError(f"{f'{whole}[{partition}]'!r} is no asset partition")
        return cls(whole.path, **dict(zip(names, values, strict=True)))

    @classmethod
    def parse(cls, text: str) -> AssetPartition:
        """From what `str` writes. WorkError in one line for any other text."""
        path, bracket, partition = text.partition("[")
        with suppress(WorkError):
            made = cls.of(path.split("/"), partition.removesuffix("]") if bracket else None)
            if str(made) == text:
                return made
        raise WorkError(f"{text!r} is no asset partition")

    @classmethod
    def of_file(cls, name: str) -> AssetPartition:
        """From what `file_name` gives. WorkError in one line for any other name."""
        path, at, partition = name.partition("@")
        with suppress(WorkError):
            made = cls.of(path.split("."), partition.replace("+", "|") if at else None)
            if made.file_name == name:
                return made
        raise WorkError(f"{name!r} is no file name of an asset partition")

    def __str__(self) -> str:
        path, partition = "/".join(self.path), self.partition
        return path if partition is None else f"{path}[{partition}]"

    @property
    def kind(self) -> str:
        """raw_pool, selection ...: the last name of the path; of a part of a model's entry,
        model_entry."""
        if len(self.path) == 2 and self.path[0] == _ENTRY and self.path[1] in MODEL_ENTRY_PARTS:
            return _ENTRY
        return self.path[-1] if self.path and self.path != (_ENTRY,) else ""

    @property
    def owner(self) -> str | None:
        """The target it belongs to, or `controls`; None of what belongs to all."""
        return self._before("owner")

    @property
    def recipe(self) -> str | None:
        """The recipe that it follows, if one."""
        return self._before("recipe")

    def _before(self, name: str) -> str | None:
        before, _ = KINDS[self.kind]
        return self.path[before.index(name)] if name in before else None

    @property
    def subset(self) -> tuple[str, str]:
        """(owner, recipe). WorkError where it has no recipe."""
        owner, recipe = self.owner, self.recipe
        if owner is None or recipe is None:
            raise WorkError(f"'{self}' is of no recipe")
        return owner, recipe

    @property
    def pair(self) -> tuple[str, str]:
        """(dataset, model). WorkError where it is not of one of each."""
        if self.dataset is None or self.model is None:
            raise WorkError(f"'{self}' is not of one dataset and one model")
        return self.dataset, self.model

    @property
    def partition(self) -> str | None:
        """Its partition as Dagster has it."""
        return "|".join(filter(None, (self.dataset, self.model))) or None

    @property
    def file_name(self) -> str:
        """A name for a file about it; two asset partitions never share one."""
        path, partition = ".".join(self.path), self.partition
        return path if partition is None else f"{path}@{partition.replace('|', '+')}"
