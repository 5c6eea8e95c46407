"""Every kind of table in the store: how its name is made up, whose samples it is about, what its
columns hold, and what a withdrawal does to it.

Withdrawal, taints, verify and gc read this and nothing else: a kind that is declared here is
searched for a withdrawn sample, and a table of another kind can't be made. What a kind's values
mean belongs to the module that owns its schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import pyarrow as pa

from mona.errors import WorkError
from mona.spec import DENSE_VIEWS

# id: a sample's. text: words of the sample, or of an answer to it. value: computed from the one
# sample. origin: where it comes from. fact: all else, which no sample can be read from.
Holds = Literal["id", "text", "value", "origin", "fact"]
Whose = Literal["dataset", "target"]


@dataclass(frozen=True, slots=True)
class TableKind:
    """One kind of table, named `<kind>.<part>.<part>...`.

    whose: the part that names the dataset or target the rows' samples are of. columns: those
    that are known, and what they hold; a kind whose rows stay has no others. key: the column by
    which a withdrawal finds its rows; None where no row is of one sample. rows: whether those
    rows go, or stay for the audit with their ids and figures, and their text blanked. grows:
    whether steps append to it, so that its newest version may be another record's; the others
    are replaced whole by the one step that records them. undecoded: columns that the digest of
    decoded rows leaves out, as a cache of megabytes a row is.
    """

    name: str
    parts: tuple[str, ...]
    whose: Whose
    columns: Mapping[str, Holds]
    key: str | None = "sample_id"
    rows: Literal["go", "stay"] = "go"
    grows: bool = False
    undecoded: tuple[str, ...] = ()

    @property
    def holds_text(self) -> bool:
        """Whether a sample's words lie in it."""
        return "text" in self.columns.values()

    def of(self, holds: Holds) -> tuple[str, ...]:
        """The columns that hold this."""
        return tuple(name for name, held in self.columns.items() if held == holds)

    def owner(self, name: str) -> str:
        """The dataset or target that a table of this kind is about."""
        return name.split(".")[1 + self.parts.index(self.whose)]


_COUNTS: dict[str, Holds] = {"sample_id": "id", "n_tokens": "value", "length": "value"}
_CODES: dict[str, Holds] = {"l1": "value", "indices": "value", "values": "value"}
_ACTIVATIONS: dict[str, Holds] = {
    "norm": "value",
    "set_aside": "text",
    "cached": "fact",
    "tokens": "value",
}
_TARGET_ROWS: dict[str, Holds] = {
    "sample_id": "id",
    "messages": "text",
    "subtask": "fact",
    "question": "text",
    "references": "text",
    "file": "origin",
    "row": "origin",
    "subtasks": "fact",
}
_SUBSETS = ("dataset", "model")


def _encodings(prefix: str, whose: Whose) -> tuple[TableKind, ...]:
    """What is computed of the samples of a population: a pool, or a target's examples."""
    of_encoder = (whose, "encoder")
    return (
        TableKind(
            f"{prefix}activations",
            of_encoder,
            whose,
            _COUNTS | _ACTIVATIONS,
            grows=True,
            undecoded=("tokens",),
        ),
        *(
            TableKind(
                f"{prefix}{view}",
                of_encoder,
                whose,
                {"sample_id": "id", "length": "value", "values": "value"},
                grows=True,
            )
            for view in DENSE_VIEWS
        ),
        TableKind(f"{prefix}codes", (whose, "model", "codes"), whose, _COUNTS | _CODES, grows=True),
    )


_DECLARED = (
    TableKind(
        "pool",
        ("dataset",),
        "dataset",
        {"sample_id": "id", "messages": "text", "origins": "origin", "n_chars": "value"},
    ),
    # Rows that became no sample: all that is known of whose they are is their source.
    TableKind(
        "quarantine",
        ("dataset",),
        "dataset",
        {"file": "origin", "line": "origin", "reason": "text", "source": "origin"},
        key="source",
    ),
    TableKind("examples", ("target",), "target", _TARGET_ROWS),
    TableKind("test_rows", ("target",), "target", _TARGET_ROWS),
    *_encodings("", "dataset"),
    *_encodings("example_", "target"),
    # A mean over a target's examples: made anew without one that is withdrawn.
    TableKind(
        "prototype",
        ("target", "model", "codes"),
        "target",
        {"representation": "fact", "values": "fact"},
        key=None,
    ),
    TableKind(
        "selection",
        ("owner", "recipe", *_SUBSETS),
        "dataset",
        {
            "rank": "fact",
            "sample_id": "id",
            "score": "fact",
            "length": "fact",
            "source": "origin",
            "licence": "origin",
            "origins": "origin",
        },
        rows="stay",
    ),
    TableKind(
        "evaluation",
        ("target", "recipe", *_SUBSETS),
        "target",
        {
            "sample_id": "id",
            "subtask": "fact",
            "metric": "fact",
            "value": "fact",
            "tokens": "fact",
            "answer": "text",
        },
        rows="stay",
        undecoded=("tokens",),  # seals never read it; its bytes are sealed as all are
    ),
)
KINDS: Mapping[str, TableKind] = MappingProxyType({kind.name: kind for kind in _DECLARED})


def kind_of(name: str) -> TableKind | None:
    """The kind of a table; None for one that is not declared."""
    return KINDS.get(name.partition(".")[0])


def tables_about(names: Iterable[str], whose: Whose, owner: str) -> list[tuple[str, TableKind]]:
    """Those of the tables whose rows are of one dataset's or target's samples."""
    found = ((name, kind_of(name)) for name in names)
    return [(n, k) for n, k in found if k is not None and (k.whose, k.owner(n)) == (whose, owner)]


def require_declared(name: str, schema: pa.Schema) -> TableKind:
    """The kind of a table about to be made. WorkError where a withdrawal could not find its rows:
    the kind is not declared, the key column is missing, or rows that stay have a column of which
    nothing is said."""
    kind = kind_of(name)
    if kind is None:
        raise WorkError(f"table '{name}': resources.tables declares no kind of this name")
    if len(name.split(".")) < 2 + kind.parts.index(kind.whose):
        raise WorkError(f"table '{name}': its name does not say which {kind.whose} it is about")
    if kind.key is not None and kind.key not in schema.names:
        raise WorkError(f"table '{name}': has no column '{kind.key}' to find its rows by")
    unsaid = sorted(set(schema.names) - set(kind.columns)) if kind.rows == "stay" else []
    if unsaid:
        raise WorkError(f"table '{name}': resources.tables does not say what '{unsaid[0]}' holds")
    return kind
