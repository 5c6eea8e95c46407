"""Target tasks: the rows of benchmark files as examples and held-out test rows.

One module a benchmark turns files into `TargetRow`s, called as the reader it is: what it says of
itself is `base.Reader`, and `mona.registry.READERS` finds it. `_row` says what such a row is,
draws the representative examples and keeps them out of the test rows. Where files come
from is `mona.files` and the resources; what test rows are compared with is
`mona.decontamination`; how a task is scored is not here either.
"""

from __future__ import annotations

from mona.targets._read import read_target
from mona.targets._row import (
    EXAMPLES_SCHEMA,
    TargetRow,
    choose_examples,
    from_table,
    held_out,
    to_table,
)

__all__ = [
    "EXAMPLES_SCHEMA",
    "TargetRow",
    "choose_examples",
    "from_table",
    "held_out",
    "read_target",
    "to_table",
]
