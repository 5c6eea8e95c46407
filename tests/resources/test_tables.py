"""What is declared is what is made: the schemas of every table against resources.tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from assets import targets
from assets.evaluation import RESULTS_SCHEMA, results_table
from assets.prototype import PROTOTYPE_SCHEMA, prototype_table
from assets.raw_pool import pool_table, quarantine_table
from assets.subset import SUBSET_SCHEMA, subset_table
from mona.errors import WorkError
from mona.pool import POOL_SCHEMA, QUARANTINE_SCHEMA
from mona.spec import DENSE_VIEWS
from mona.targets import EXAMPLES_SCHEMA
from resources.encoding_tables import (
    activations_schema,
    codes_schema,
    examples_population,
    pool_population,
    view_schema,
)
from resources.store import Store
from resources.tables import KINDS, kind_of, require_declared, tables_about

MADE = {
    pool_table("d"): POOL_SCHEMA,
    quarantine_table("d"): QUARANTINE_SCHEMA,
    "examples.t": EXAMPLES_SCHEMA,
    targets.test_rows_table("t"): EXAMPLES_SCHEMA,
    pool_population("d").activations_table("e"): activations_schema("e", 4, "float32"),
    pool_population("d").codes_table("m", "c"): codes_schema("c"),
    examples_population("t").activations_table("e"): activations_schema("e", 4, "float32"),
    examples_population("t").codes_table("m", "c"): codes_schema("c"),
    prototype_table("t", "m", "c"): PROTOTYPE_SCHEMA,
    subset_table("t", "r", "d", "m"): SUBSET_SCHEMA,
    results_table("t", "r", "d", "m"): RESULTS_SCHEMA,
    **{pool_population("d").view_table(v, "e"): view_schema("e", 4) for v in DENSE_VIEWS},
    **{examples_population("t").view_table(v, "e"): view_schema("e", 4) for v in DENSE_VIEWS},
}


@pytest.mark.parametrize("name", MADE)
def test_every_column_that_is_made_is_declared_and_its_owner_is_known(name: str) -> None:
    kind = require_declared(name, MADE[name])
    assert set(MADE[name].names) <= set(kind.columns)
    assert kind.owner(name) == {"dataset": "d", "target": "t"}[kind.whose]
    assert len(name.split(".")) == 1 + len(kind.parts)


def test_every_declared_kind_is_among_them() -> None:
    assert {kind.name for name in MADE if (kind := kind_of(name))} == set(KINDS)


def test_tables_are_found_by_whose_samples_they_hold() -> None:
    about = {name for name, _ in tables_about([*MADE, "other.d", "pool.d2"], "dataset", "d")}
    assert about == {n for n in MADE if "example" not in n and n.split(".")[0] not in (
        "test_rows", "prototype", "evaluation")}  # fmt: skip
    assert tables_about(MADE, "dataset", "t") == []
    # An evaluation is of the target's rows, whatever the dataset is called.
    assert {n.split(".")[0] for n, _ in tables_about(MADE, "target", "t")} >= {"evaluation"}


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("representations.d", ["sample_id"], "declares no kind"),
        ("codes", ["sample_id"], "does not say which dataset"),
        ("selection.t.r", ["sample_id"], "does not say which dataset"),
        ("codes.d.m.c", ["id", "values"], "no column 'sample_id'"),
        ("quarantine.d", ["reason"], "no column 'source'"),
        ("selection.t.r.d.m", ["sample_id", "text"], "what 'text' holds"),
    ],
)
def test_a_table_that_a_withdrawal_could_not_search_is_not_made(
    tmp_path: Path, name: str, columns: list[str], said: str
) -> None:
    store = Store(root=str(tmp_path), home=str(tmp_path))
    schema = pa.schema([(column, pa.string()) for column in columns])
    with pytest.raises(WorkError, match=said):
        store.ensure(name, schema)
    with pytest.raises(WorkError, match=said):
        store.replace(name, [], schema)
    assert store.table_names() == []
