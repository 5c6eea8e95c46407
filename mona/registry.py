"""Kinds of things a name stands for, each a file of its own: pool formats, target readers,
export formats.

The folder is the register: every module of a kind's package is one of its kind under the
module's own name, but for `base` (the contract, and what its kinds share) and modules with a
leading underscore. Other people's packages add to it by an entry point in the group that is
called as the package. What it takes to be one of a kind says the dataclass in its package's
`base`; a module's `KIND`, or what the entry point names, is an instance of it.

Listing names imports nothing; a kind's module is imported when it is asked for. Belongs here:
finding and naming. What a kind does is its package's.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mona.errors import RequestError
from mona.names import nearest

if TYPE_CHECKING:
    from mona.exports.base import ExportFormat
    from mona.formats.base import Format
    from mona.targets.base import Reader

Kind = TypeVar("Kind")

# A name is written in configurations, may be part of a path, and is a module's.
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry(Generic[Kind]):
    """The kinds of one package, by name.

    what: what messages call one of them; package: where they are; contract: the class in the
    package's `base` that each is an instance of.
    """

    def __init__(self, what: str, package: str, contract: str) -> None:
        self.what = what
        self._package = package
        self._contract = contract
        self._loaded: dict[str, Kind] = {}

    def names(self) -> tuple[str, ...]:
        """All names, sorted. RequestError for a name that is none or given twice."""
        return tuple(self._places)

    def is_own(self, name: str) -> bool:
        """Whether it is a module of the package, rather than somebody's entry point."""
        return isinstance(self._places.get(name), str)

    def check(self, name: str, *also: str) -> None:
        """RequestError where nothing has the name, with the nearest and all there are; `also`
        are names that count beside them."""
        known = (*also, *self.names())
        if name not in known:
            near = nearest(name, known)
            there = f"{near} There" if near else "; there"
            raise RequestError(f"{name[:80]!r} is no {self.what}{there} are {', '.join(known)}")

    def get(self, name: str) -> Kind:
        """The kind of that name, imported now if it was not yet.

        RequestError where there is none, or where what is there is not one of the kind.
        """
        if name not in self._loaded:
            self.check(name)
            self._loaded[name] = self._load(self._places[name])
        return self._loaded[name]

    def _load(self, place: str | EntryPoint) -> Kind:
        found: Any
        if isinstance(place, str):
            found = getattr(import_module(place), "KIND", None)
        else:
            try:
                found = place.load()
            except (ImportError, AttributeError) as error:
                # Somebody else's package: said as what it is, not as a fault of ours.
                raise RequestError(
                    f"{self.what} {_said(place)}: can't be imported: {error}"
                ) from error
        contract = getattr(import_module(f"{self._package}.base"), self._contract)
        if not isinstance(found, contract):
            raise RequestError(
                f"{self.what} {_said(place)}: is a {type(found).__name__}, "
                f"not a {self._package}.base.{self._contract}"
            )
        kind: Kind = found
        return kind

    @cached_property
    def _places(self) -> dict[str, str | EntryPoint]:
        """Name -> the module, or the entry point, sorted by name."""
        spec = find_spec(self._package)
        folders = spec.submodule_search_locations if spec is not None else None
        places: dict[str, str | EntryPoint] = {}
        for module in pkgutil.iter_modules(folders):
            if module.name != "base" and not module.name.startswith("_"):
                self._add(places, module.name, f"{self._package}.{module.name}")
        for point in _once(entry_points(group=self._package)):
            self._add(places, point.name, point)
        return dict(sorted(places.items()))

    def _add(self, places: dict[str, str | EntryPoint], name: str, place: str | EntryPoint) -> None:
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"{self.what} {_said(place)}: '{name}' is no name: small letters, digits and _"
            )
        if name in places:
            raise RequestError(
                f"two are {self.what} '{name}': {_said(places[name])} and {_said(place)}"
            )
        places[name] = place


def _once(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """The entry points in an order of their own; a package that is found in two folders of the
    path gives each once."""
    return sorted(set(points), key=lambda point: (point.name, point.value))


def _said(place: str | EntryPoint) -> str:
    if isinstance(place, str):
        return place
    package = place.dist.name if place.dist is not None else "an unknown package"
    return f"{place.value} of {package}"


FORMATS: Registry[Format] = Registry("pool format", "mona.formats", "Format")
READERS: Registry[Reader] = Registry("target reader", "mona.targets", "Reader")
EXPORTS: Registry[ExportFormat] = Registry("export format", "mona.exports", "ExportFormat")
