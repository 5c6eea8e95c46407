"""The incremental store of encodings on a real tiny model: each stored row against an encoding
of its own text, made alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mona import method
from mona.codes import from_arrow
from mona.encoder import Encoder
from mona.errors import WorkError
from mona.pool import POOL_SCHEMA
from mona.sae import SparseAutoencoder
from mona.sample import Message, sample_id, to_records
from mona.spec import TokenPolicy
from mona.tokens import SetAside
from resources.encoding_tables import pool_population
from resources.encodings import CodesOf, Encodings, SyncReport
from resources.engine import Engine
from resources.store import Store
from resources.table_at import TableAt

Text = tuple[Message, ...]
LATENTS = 64


def texts(start: int, count: int) -> list[Text]:
    return [
        (Message("user", f"How many of {i} plums are {i % 9}?"), Message("assistant", f"{i * 3}."))
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path) -> Encoder:
    return Encoder.load(
        tiny_llama,
        layer=-2,
        dtype="float32",
        device="cpu",
        template="chat",
        policy=TokenPolicy(),
        max_length=128,
    )


@pytest.fixture(scope="module")
def sae(encoder: Encoder) -> SparseAutoencoder:
    made = torch.Generator().manual_seed(0)
    w_dec = torch.randn(LATENTS, encoder.width, generator=made)
    return SparseAutoencoder(
        w_enc=w_dec.T.contiguous(),
        b_enc=torch.zeros(LATENTS),
        w_dec=w_dec,
        b_dec=torch.zeros(encoder.width),
        activation="topk",
        k=6,
    )


@dataclass
class Pool:
    """A pool, its encodings, and how many samples passed the model."""

    store: Store
    encoder: Encoder
    sae: SparseAutoencoder
    forwarded: list[int] = field(default_factory=list)

    def fill(self, rows: Sequence[Text], ids: Sequence[str] | None = None) -> TableAt:
        made = [
            {"sample_id": key, "messages": to_records(text), "origins": [], "n_chars": 1}
            for key, text in zip(ids or map(sample_id, rows), rows, strict=True)
        ]
        table = pa.Table.from_pylist(made, schema=POOL_SCHEMA)
        return self.store.at(
            "pool.a", self.store.replace("pool.a", table.to_batches(), POOL_SCHEMA)
        )

    def encodings(self, samples: TableAt, **options: Any) -> Encodings:
        engine = Engine(device="cpu", batch_tokens=256, commit_tokens=512)
        population = pool_population("a")
        return Encodings(
            self.store, engine, population, samples, "e", lambda: self.encoder, **options
        )

    @property
    def codes(self) -> CodesOf:
        return CodesOf("codes.a.m.c", "c", self.sae, None, "mean")

    def sync(self, samples: TableAt, **options: Any) -> SyncReport:
        return self.encodings(samples, **options).sync(self.codes)

    def stored(self) -> dict[str, dict[int, float]]:
        rows = self.store.read("codes.a.m.c")
        codes = from_arrow(rows)
        spans = zip(codes.indptr, codes.indptr[1:], strict=False)
        found = [
            dict(zip(codes.indices[a:b].tolist(), codes.values[a:b].tolist(), strict=True))
            for a, b in spans
        ]
        ids = rows.column("sample_id").to_pylist()
        assert len(set(ids)) == len(ids)
        return dict(zip(ids, found, strict=True))

    def alone(self, text: Text) -> dict[int, float]:
        """The code of one text, encoded with no neighbour."""
        states = self.encoder.forward([self.encoder.renderer.render(text)])
        codes = self.sae.encode(states.states, states.offsets, None, "mean")
        return dict(zip(codes.indices.tolist(), codes.values.tolist(), strict=True))

    def assert_true(self, rows: Sequence[Text]) -> None:
        stored = self.stored()
        for text in rows:
            assert stored[sample_id(text)] == pytest.approx(self.alone(text), rel=5e-3, abs=1e-3)


@pytest.fixture
def pool(tmp_path: Path, encoder: Encoder, sae: SparseAutoencoder) -> Pool:
    return Pool(Store(root=str(tmp_path), home=str(tmp_path)), encoder, sae)


def test_a_pool_replaced_while_it_is_encoded_gives_no_row_another_s_code(pool: Pool) -> None:
    rows = texts(0, 60)
    samples = pool.fill(rows)
    seen = 0

    def replace(done: int) -> None:
        nonlocal seen
        seen += done
        if 0 < seen < len(rows):
            pool.fill([*texts(500, 7), *rows[::-1]])

    pool.encodings(samples).sync(pool.codes, replace)
    assert pool.store.version("pool.a") > samples.version + 2
    assert pool.stored().keys() == {sample_id(text) for text in rows}
    pool.assert_true(rows)
    # What came in meanwhile is the next run's.
    report = pool.sync(pool.store.newest("pool.a"))
    assert report.forwarded == 7
    pool.assert_true([*rows, *texts(500, 7)])


def test_a_text_under_another_id_ends_the_step_before_it_is_encoded(pool: Pool) -> None:
    rows = texts(0, 12)
    ids = [sample_id(text) for text in rows]
    samples = pool.fill(rows, [*ids[:4], ids[5], ids[4], *ids[6:]])
    with pytest.raises(WorkError, match=rf"'pool.a' version 1: .* sample {ids[5]} has another id"):
        pool.sync(samples)
    assert not {ids[4], ids[5]} & pool.stored().keys()


def test_rows_of_samples_that_left_stay_and_cost_nothing_when_they_come_back(pool: Pool) -> None:
    rows = texts(0, 20)
    assert pool.sync(pool.fill(rows)).forwarded == 20
    report = pool.sync(pool.fill(rows[5:]))
    assert (report.forwarded, report.departed) == (0, 5)
    assert len(pool.stored()) == 20
    assert pool.sync(pool.fill(rows)).forwarded == 0
    pool.assert_true(rows)
    encodings = pool.encodings(pool.fill(rows[8:]))
    encodings.sync(pool.codes)
    encodings.forget_departed(pool.codes)
    assert pool.stored().keys() == {sample_id(text) for text in rows[8:]}
    assert pool.store.count(encodings.table) == 12


def test_a_second_writer_doubles_no_row(pool: Pool) -> None:
    rows = texts(0, 10)
    samples = pool.fill(rows)
    first, second = pool.encodings(samples), pool.encodings(samples)
    stored = second._stored  # what the other home knew before the first committed
    assert not stored.cached.any()
    first.sync(pool.codes)
    for window in second._windows(np.arange(10)):
        second._commit(window, pool.codes, {}, set())
    assert len(pool.stored()) == 10
    assert pool.store.count(first.table) == 10


def test_what_can_t_be_rendered_is_set_aside_with_its_reason(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(0, 9)
    render = pool.encoder.renderer.render_batch

    def refusing(conversations: Sequence[Text]) -> list[Any]:
        made = render(conversations)
        return [
            SetAside("no turn of 4 plums") if " 4 plums" in text[0].content else row
            for text, row in zip(conversations, made, strict=True)
        ]

    monkeypatch.setattr(pool.encoder.renderer, "render_batch", refusing)
    samples = pool.fill(rows)
    encodings = pool.encodings(samples, views=("mean",), cache_bytes=1e9)
    report = encodings.sync(pool.codes)
    assert report.forwarded == 8
    aside = pool.store.read(encodings.table, ["sample_id", "set_aside"]).to_pylist()
    assert [row["set_aside"] for row in aside if row["sample_id"] == sample_id(rows[4])] == [
        "no turn of 4 plums"
    ]
    assert sum(row["set_aside"] is not None for row in aside) == 1
    for table in ("codes.a.m.c", encodings.view_tables["mean"]):
        assert sample_id(rows[4]) not in pool.store.sample_ids(table).to_pylist()
        assert pool.store.count(table) == 8
    again = pool.encodings(samples, views=("mean",), cache_bytes=1e9)
    assert again.sync(pool.codes).forwarded == 0
    states = dict(again.token_states(range(9)))
    assert len(states[4]) == 0
    assert all(len(states[i]) for i in range(9) if i != 4)


def test_only_the_views_asked_for_are_stored_and_one_more_leaves_the_others_alone(
    pool: Pool,
) -> None:
    rows = texts(0, 8)
    samples = pool.fill(rows)
    pool.sync(samples, views=("mean",))
    names = {view: pool_population("a").view_table(view, "e") for view in ("mean", "weighted_mean")}
    assert pool.store.table_names() == ["activations.a.e", "codes.a.m.c", names["mean"], "pool.a"]
    before = pool.store.version("codes.a.m.c")
    report = pool.sync(samples, views=("mean", "weighted_mean"))
    assert report.forwarded == 8
    assert pool.store.count(names["weighted_mean"]) == 8
    assert pool.store.version("codes.a.m.c") >= before
    states = pool.encoder.forward([pool.encoder.renderer.render(rows[3])]).states.float()
    stored = pool.store.newest(names["mean"]).rows(["values"], [sample_id(rows[3])])
    np.testing.assert_allclose(
        stored.column("values")[0].as_py(), states.mean(dim=0).numpy(), rtol=5e-3, atol=5e-3
    )


def test_codes_from_cached_tokens_are_those_of_a_forward_pass(pool: Pool) -> None:
    rows = texts(0, 30)
    samples = pool.fill(rows)
    encodings = pool.encodings(samples, cache_bytes=1e9)
    order = [7, 3, 29, 0]
    states = list(encodings.token_states(order))
    assert [position for position, _ in states] == order
    report = encodings.sync(pool.codes)
    assert (report.from_cache, report.forwarded) == (4, 26)
    pool.assert_true(rows)


def test_a_view_that_is_computed_otherwise_never_meets_its_older_rows(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = pool.fill(texts(0, 6))
    pool.sync(samples, views=("mean",))
    old = pool_population("a").view_table("mean", "e")
    monkeypatch.setitem(method.VIEWS, "mean", 2)
    more = pool.fill(texts(0, 9))
    report = pool.sync(more, views=("mean",))
    new = pool_population("a").view_table("mean", "e")
    assert new != old
    assert report.forwarded == 9
    assert (pool.store.count(old), pool.store.count(new)) == (6, 9)
    assert pool.store.count("codes.a.m.c") == 9
