"""mona.content: a digest of values, blind to how they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mona.content import ContentDigest

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n", pa.int32()),
        ("on", pa.bool_()),
        ("raw", pa.large_binary()),
        ("values", pa.list_(pa.float16())),
        ("pair", pa.list_(pa.int64(), 2)),
        ("turns", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)


def row(i: int) -> dict[str, Any]:
    return {
        "id": f"s{i}" if i % 5 else None,
        "n": i - 3,
        "on": bool(i % 3),
        "raw": bytes(range(i % 7)) if i % 4 else None,
        "values": [np.float16(i / 8)] * (i % 3),
        "pair": [i, -i],
        "turns": [{"role": "user", "content": "é" * i}, {"role": None, "content": ""}][: i % 3],
    }


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def digest(rows: list[dict[str, Any]], batch: int = 100) -> str:
    return digest_of(table(rows), batch)


def digest_of(rows: pa.Table, batch: int = 100) -> str:
    made = ContentDigest()
    for part in rows.to_batches(max_chunksize=batch):
        made.add(part)
    return made.hexdigest()


@given(size=st.integers(1, 40), first=st.integers(1, 12), second=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_batches_leave_no_trace(size: int, first: int, second: int) -> None:
    rows = [row(i) for i in range(size)]
    assert digest(rows, first) == digest(rows, second)


def test_slices_are_read_as_what_they_show() -> None:
    rows = [row(i) for i in range(20)]
    sliced = table([row(99), *rows, row(98)]).slice(1, 20)
    assert digest_of(sliced) == digest(rows)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "other"),
        ("id", None),
        ("n", 7),
        ("on", None),
        ("raw", b"\0"),
        ("raw", None),
        ("values", [np.float16(0.5)]),
        ("values", None),
        ("pair", [1, 2]),
        ("turns", []),
        ("turns", [{"role": "user", "content": "other"}]),
    ],
)
def test_any_changed_value_shows(field: str, value: Any) -> None:
    rows = [row(i) for i in range(1, 9)]
    before = digest(rows)
    rows[6] = {**rows[6], field: value}
    assert rows[6] != row(7)
    assert digest(rows) != before


def test_order_and_text_boundaries_show() -> None:
    rows = [row(i) for i in range(1, 9)]
    assert digest(rows) != digest(rows[::-1])
    one = [{**row(1), "id": "ab"}, {**row(1), "id": "c"}]
    two = [{**row(1), "id": "a"}, {**row(1), "id": "bc"}]
    assert digest(one) != digest(two)


def test_an_unknown_type_is_refused() -> None:
    odd = pa.table({"d": pa.array([{"a": 1}], pa.map_(pa.string(), pa.int8()))})
    with pytest.raises(TypeError, match="no digest of a map"):
        digest_of(odd)
