"""mona.selection against a plain sort of everything."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mona import selection
from mona.errors import WorkError
from mona.selection import Selection, TopRanked, rows_within, select
from mona.spec import Budget

# Few distinct scores, so that ties are common.
SCORES = st.sampled_from([-2.5, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0])
POOL = st.lists(st.tuples(SCORES, st.integers(0, 30)), min_size=1, max_size=60)


def ids_of(count: int) -> list[str]:
    """Ids whose order is not the order they come in."""
    return [f"{(row * 7919) % 1_000_003:06x}" for row in range(count)]


def batches(
    rows: list[tuple[str, float, int]], size: int
) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    return [
        (
            [row[0] for row in rows[start : start + size]],
            np.array([row[1] for row in rows[start : start + size]], np.float32),
            np.array([row[2] for row in rows[start : start + size]], np.int64),
        )
        for start in range(0, len(rows), size)
    ]


def reference(
    rows: list[tuple[str, float, int]], budget: Budget, excluded: set[str]
) -> list[str] | None:
    """Sorts everything; None where the best row alone exceeds a token budget."""
    ranked = sorted(
        (row for row in rows if row[0] not in excluded), key=lambda row: (-row[1], row[0])
    )
    if budget.tokens is None:
        if budget.count is not None:
            return [row[0] for row in ranked[: budget.count]]
        exact = Decimal(str(budget.share)) * len(ranked)
        return [row[0] for row in ranked[: max(1, int(exact))]]
    taken, total = [], 0
    for name, _, length in ranked:
        total += length
        if total > budget.tokens:
            break
        taken.append(name)
    return taken or None


BUDGETS = st.one_of(
    st.integers(1, 70).map(lambda count: Budget(count=count)),
    st.integers(1, 100).map(lambda percent: Budget(share=percent / 100)),
    st.integers(1, 900).map(lambda tokens: Budget(tokens=tokens)),
)


@settings(deadline=None)
@given(POOL, BUDGETS, st.integers(1, 20), st.integers(1, 8), st.randoms(), st.data())
def test_every_budget_takes_what_a_full_sort_takes(
    pool: list[tuple[float, int]],
    budget: Budget,
    size: int,
    merge_rows: int,
    shuffler: random.Random,
    data: st.DataObject,
) -> None:
    names = ids_of(len(pool))
    rows = [(name, score, length) for name, (score, length) in zip(names, pool, strict=True)]
    excluded = set(data.draw(st.lists(st.sampled_from(names), max_size=len(names) - 1)))
    excluded -= {names[0]}
    expected = reference(rows, budget, excluded)
    shuffler.shuffle(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_MERGE_ROWS", merge_rows)
        if expected is None:
            with pytest.raises(WorkError, match="more than the whole budget"):
                select(batches(rows, size), budget, len(rows), excluded)
            return
        chosen = select(batches(rows, size), budget, len(rows), excluded)
    by_id = {row[0]: row for row in rows}
    assert chosen.sample_ids == expected
    assert chosen.scores.tolist() == [by_id[name][1] for name in expected]
    assert chosen.ranks.tolist() == list(range(1, len(expected) + 1))
    assert chosen.lengths is not None
    assert chosen.lengths.tolist() == [by_id[name][2] for name in expected]
    report = chosen.report
    assert report.chosen == len(expected)
    assert report.excluded == len(excluded)
    assert report.eligible == len(rows) - len(excluded)
    assert report.tokens == sum(by_id[name][2] for name in expected)


@pytest.mark.parametrize(
    ("share", "eligible", "rows"),
    [
        (0.07, 100, 7),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996 in floating point
        (0.57, 100, 57),
        (0.01, 1_000_000, 10_000),
        (0.05, 19, 1),  # 0.95: never fewer than one row
        (0.05, 39, 1),
        (1.0, 12_345, 12_345),
        (1e-7, 10_000_000, 1),
        (0.3333, 10_000, 3_333),
    ],
)
def test_a_share_is_exact_in_its_written_digits(share: float, eligible: int, rows: int) -> None:
    assert rows_within(Budget(share=share), eligible) == rows


def one_batch(scores: list[float], lengths: list[int] | None = None) -> list[Any]:
    names = [f"s{row}" for row in range(len(scores))]
    values = np.array(scores, np.float32)
    return [(names, values)] if lengths is None else [(names, values, np.array(lengths))]


def test_a_share_is_of_the_rows_left_after_exclusion() -> None:
    # 5 % of 120 would be 6; of the 100 that are left it is 5.
    scores = [row / 200 for row in range(120)]
    excluded = {f"s{row}" for row in range(100, 120)}
    chosen = select(one_batch(scores), Budget(share=0.05), 120, excluded)
    assert chosen.sample_ids == ["s99", "s98", "s97", "s96", "s95"]
    assert chosen.lengths is None
    assert chosen.report.tokens is None


def test_more_than_there_is_gives_all_and_says_so() -> None:
    chosen = select(one_batch([0.1, 0.2]), Budget(count=5), 2)
    assert chosen.sample_ids == ["s1", "s0"]
    assert not chosen.report.budget_met
    assert select(one_batch([0.1, 0.2]), Budget(count=2), 2).report.budget_met


def test_a_token_budget_takes_a_prefix_and_skips_nothing_to_fill_it() -> None:
    batch = one_batch([0.9, 0.8, 0.7, 0.6], [40, 70, 10, 10])
    chosen = select(batch, Budget(tokens=100), 4)
    assert chosen.sample_ids == ["s0"]
    assert chosen.report.tokens == 40
    assert chosen.report.budget_met


@pytest.mark.parametrize(("tokens", "met"), [(129, True), (130, True), (131, False)])
def test_a_token_budget_is_met_unless_the_pool_runs_out(tokens: int, met: bool) -> None:
    batch = one_batch([0.9, 0.8, 0.7, 0.6], [40, 70, 10, 10])
    chosen = select(batch, Budget(tokens=tokens), 4)
    assert chosen.report.budget_met is met
    assert chosen.report.tokens == (120 if tokens < 130 else 130)


def test_a_best_row_over_the_budget_is_named() -> None:
    with pytest.raises(WorkError, match=r"sample s1, has 70 tokens: more than .* of 60"):
        select(one_batch([0.8, 0.9], [10, 70]), Budget(tokens=60), 2)


def test_lengths_are_needed_for_tokens() -> None:
    with pytest.raises(ValueError, match="length of every row"):
        select(one_batch([0.5]), Budget(tokens=60), 1)


def test_scores_that_are_no_numbers_name_their_sample() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(WorkError, match=r"sample s2 has the score -?(nan|inf)"):
            select(one_batch([0.1, 0.2, bad]), Budget(count=1), 3)
    # An excluded row cannot be chosen, whatever its score.
    assert select(one_batch([0.1, float("nan")]), Budget(count=1), 2, {"s1"}).sample_ids == ["s0"]


def test_a_scan_that_stops_short_is_no_selection() -> None:
    with pytest.raises(WorkError, match="2 rows of a pool of 3"):
        select(one_batch([0.1, 0.2]), Budget(count=1), 3)


def test_a_sample_that_comes_twice_is_named() -> None:
    twice = [*one_batch([0.1, 0.2]), (["s1"], np.array([0.3], np.float32))]
    with pytest.raises(WorkError, match="sample s1 comes twice"):
        select(twice, Budget(count=3), 3)


def test_nothing_eligible() -> None:
    with pytest.raises(WorkError, match="none of the pool's 2 rows is eligible"):
        select(one_batch([0.1, 0.2]), Budget(count=1), 2, {"s0", "s1"})
    with pytest.raises(WorkError, match="none of the pool's 0 rows"):
        select([], Budget(share=0.5), 0)


def large_pool() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    names = np.array([f"{name:032x}" for name in rng.permutation(200_000)])
    return names, rng.beta(2, 9, 200_000).round(3).astype(np.float32)


def ranked_in_batches(order: np.ndarray, size: int, budget: Budget) -> Selection:
    names, scores = large_pool()
    top = TopRanked(budget, len(names))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        top.add(pa.array(names[rows]), scores[rows], pa.array(rows % 500, pa.int32()))
        held = top._candidates.num_rows + top._incoming_rows
        assert held <= 3 * selection._MERGE_ROWS
    return top.finish()


def test_a_row_that_ties_with_the_last_one_kept_may_still_win_by_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "_MERGE_ROWS", 1)
    top = TopRanked(Budget(count=2), 4)
    for name, score in (("d", 0.5), ("c", 0.5), ("e", 0.25), ("a", 0.5)):
        top.add([name], np.array([score], np.float32))
    assert top.finish().sample_ids == ["a", "c"]


@pytest.mark.parametrize("budget", [Budget(count=3_000), Budget(share=0.03), Budget(tokens=10**6)])
def test_a_large_pool_in_any_order_gives_one_selection(budget: Budget) -> None:
    names, scores = large_pool()
    forward = np.arange(200_000)
    first = ranked_in_batches(forward, 8_192, budget)
    second = ranked_in_batches(np.random.default_rng(6).permutation(200_000), 50_021, budget)
    assert first.sample_ids == second.sample_ids
    assert (first.scores == second.scores).all()
    assert (first.report.pool_counts == second.report.pool_counts).all()
    order = np.lexsort((names, -scores))
    assert first.sample_ids == names[order[: len(first.sample_ids)]].tolist()
    report = first.report
    assert report.pool_counts.sum() == 200_000
    assert report.chosen_counts.sum() == report.chosen
    assert (report.chosen_counts <= report.pool_counts).all()
    assert (report.edges[0], report.edges[-1]) == (scores.min(), scores.max())
    assert (
        report.pool_counts.tolist() == np.histogram(scores.astype(float), report.edges)[0].tolist()
    )
