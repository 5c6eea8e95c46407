"""sharegpt: a list of turns that say `from`, with a `value`; also as JSON text, and whatever other
fields there are.
"""

from __future__ import annotations

from mona.formats._turns import conversation, turns_of
from mona.formats.base import Format, Row


def _fits(row: Row) -> bool:
    first = (turns_of(row) or [None])[0]
    return isinstance(first, dict) and "from" in first


KIND = Format(fits=_fits, precedence=10, convert=conversation)
