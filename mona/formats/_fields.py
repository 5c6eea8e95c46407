"""A row that remembers which of its fields were read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mona.formats.base import LONE_SURROGATE, Row


class Fields(dict[str, Any]):
    """A row that remembers which of its fields were read."""

    def __init__(self, row: Row, read: Iterable[str] = ()) -> None:
        super().__init__(row)
        self.seen = set(read)

    def __getitem__(self, field: str) -> Any:
        self.seen.add(field)
        return super().__getitem__(field)

    def get(self, field: str, default: Any = None) -> Any:
        self.seen.add(field)
        return super().get(field, default)

    def unread(self) -> tuple[str, ...]:
        """The fields with text in them that were not read, sorted."""
        return tuple(
            sorted(
                _shown_field(field)
                for field, value in self.items()
                if field not in self.seen and isinstance(value, str) and value.strip()
            )
        )


def _shown_field(field: str) -> str:
    return field[:60] if not LONE_SURROGATE.search(field) else ascii(field)[:60]
