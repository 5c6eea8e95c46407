"""Exact top-ranked selection from a stream of scores, within a budget.

Belongs here: ranking, budgets, exclusion and the report of what was chosen. Where scores
come from is `mona.similarity`; which samples to exclude is decided elsewhere.

Rows rank by score, highest first, then by sample id, so a selection depends neither on the
order of the stream nor on its batches. Only rows that can still be chosen are kept, and four
bytes of score for each eligible row, from which the report's histogram comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mona.errors import WorkError
from mona.spec import Budget

_BINS = 40
_SCHEMA = pa.schema([("sample_id", pa.string()), ("score", pa.float32()), ("length", pa.int64())])
# Rows gathered before they are merged into the candidates.
_MERGE_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """Counts and score distributions of a selection.

    `pool` figures are over the eligible rows: those scanned less those excluded. `tokens` is
    None when lengths were not given. `budget_met` is False when the pool ran out before the
    count or token budget did. Histograms share `edges`.
    """

    excluded: int
    eligible: int
    chosen: int
    tokens: int | None
    budget_met: bool
    edges: np.ndarray  # float64 [bins + 1]
    pool_counts: np.ndarray  # int64 [bins]
    chosen_counts: np.ndarray  # int64 [bins]


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen samples, best first: ids, float32 scores [k], ranks from 1 [k] and, where
    given, lengths in tokens [k]."""

    sample_ids: list[str]
    scores: np.ndarray
    ranks: np.ndarray
    lengths: np.ndarray | None
    report: SelectionReport


def rows_within(budget: Budget, eligible: int) -> int:
    """How many of `eligible` rows a share or count budget takes.

    share: max(1, floor(share x eligible)), exact in the decimals the share was written with;
    count: all when there are fewer.
    """
    if budget.share is not None:
        # 0.29 * 100 is 28.999... in floating point; its written digits give 29.
        return max(1, int(Fraction(repr(budget.share)) * eligible))
    assert budget.count is not None
    return min(budget.count, eligible)


class TopRanked:
    """Takes scores batch by batch, in any order, and gives the selection at the end.

    `pool_rows` is the number of rows that will come, excluded ones included; `excluded` holds
    ids that may not be chosen (and may be unknown to the pool).
    """

    def __init__(self, budget: Budget, pool_rows: int, excluded: Iterable[str] = ()) -> None:
        self._budget = budget
        self._pool_rows = pool_rows
        self._excluded = pa.array(sorted(set(excluded)), pa.string())
        self._candidates = _SCHEMA.empty_table()
        self._incoming: list[pa.Table] = []
        self._incoming_rows = 0
        self._threshold = -np.inf  # the score below which no row can be chosen any more
        self._scores: list[np.ndarray] = []
        self._scanned = 0

    def add(
        self,
        sample_ids: pa.Array | Sequence[str],
        scores: np.ndarray,
        lengths: pa.Array | np.ndarray | None = None,
    ) -> None:
        """A batch: ids, scores [B] and, for a token budget, untruncated lengths [B].

        Raises WorkError naming the sample whose score is not finite.
        """
        rows = pa.table(
            [
                _array(sample_ids, pa.string()),
                _array(scores, pa.float32()),
                pa.nulls(len(scores), pa.int64())
                if lengths is None
                else _array(lengths, pa.int64()),
            ],
            schema=_SCHEMA,
        )
        if self._budget.tokens is not None and rows.column("length").null_count:
            raise ValueError("a token budget needs the length of every row")
        self._scanned += rows.num_rows
        if len(self._excluded):
            rows = rows.filter(
                pc.invert(pc.is_in(rows.column("sample_id"), value_set=self._excluded))
            )
        finite = pc.fill_null(pc.is_finite(rows.column("score")), False).to_numpy()
        if not finite.all():
            bad = int(np.argmin(finite))
            raise WorkError(
                f"sample {rows.column('sample_id')[bad]} has the score "
                f"{rows.column('score')[bad]}; scores must be finite"
            )
        values = rows.column("score").to_numpy()
        self._scores.append(values)
        # A row that ties with the threshold may still win by its id.
        rows = rows.filter(pa.array(values >= self._threshold))
        self._incoming.append(rows)
        self._incoming_rows += rows.num_rows
        if self._incoming_rows >= max(_MERGE_ROWS, self._candidates.num_rows):
            self._merge()

    def _merge(self) -> None:
        """Ranks the candidates with what came in and keeps those that can still be chosen."""
        ranked = pa.concat_tables([self._candidates, *self._incoming]).sort_by(
            [("score", "descending"), ("sample_id", "ascending")]
        )
        if self._budget.tokens is not None:
            # The first row over the budget stays: all that ranks below it is over it too.
            enough = self._rows_that_fit(ranked) + 1
        else:
            enough = rows_within(self._budget, self._pool_rows)
        self._candidates = ranked.slice(0, enough)
        self._incoming, self._incoming_rows = [], 0
        if self._candidates.num_rows == enough:
            self._threshold = self._candidates.column("score")[-1].as_py()

    def _rows_that_fit(self, ranked: pa.Table) -> int:
        totals = np.cumsum(ranked.column("length").to_numpy())
        return int((totals <= self._budget.tokens).sum())

    def finish(self) -> Selection:
        """The selection. Raises WorkError when rows are missing or come twice, when none is
        eligible, and when the best row alone exceeds the token budget."""
        if self._scanned != self._pool_rows:
            raise WorkError(f"the scan gave {self._scanned} rows of a pool of {self._pool_rows}")
        self._merge()
        scores = np.concatenate([*self._scores, np.zeros(0, np.float32)])
        eligible = len(scores)
        if not eligible:
            raise WorkError(f"none of the pool's {self._pool_rows} rows is eligible for selection")
        if self._budget.tokens is not None:
            taken = self._rows_that_fit(self._candidates)
            lengths_taken = self._candidates.column("length").slice(0, taken)
            budget_met = taken < eligible or pc.sum(lengths_taken).as_py() == self._budget.tokens
            if not taken:
                best = self._candidates.slice(0, 1).to_pylist()[0]
                raise WorkError(
                    f"the best row, sample {best['sample_id']}, has {best['length']} tokens: "
                    f"more than the whole budget of {self._budget.tokens}"
                )
        else:
            taken = rows_within(self._budget, eligible)
            budget_met = self._budget.count is None or self._budget.count <= eligible
        chosen = self._candidates.slice(0, taken)
        sample_ids = chosen.column("sample_id").to_pylist()
        if len(set(sample_ids)) < taken:
            twice = next(name for name, times in Counter(sample_ids).items() if times > 1)
            raise WorkError(f"sample {twice} comes twice in the scan")
        chosen_scores = chosen.column("score").to_numpy()
        length_column = chosen.column("length")
        lengths = None if length_column.null_count else length_column.to_numpy()
        pool_counts, edges = np.histogram(scores.astype(np.float64), bins=_BINS)
        report = SelectionReport(
            excluded=self._scanned - eligible,
            eligible=eligible,
            chosen=taken,
            tokens=None if lengths is None else int(lengths.sum()),
            budget_met=budget_met,
            edges=edges,
            pool_counts=pool_counts,
            chosen_counts=np.histogram(chosen_scores.astype(np.float64), bins=edges)[0],
        )
        return Selection(
            sample_ids, chosen_scores, np.arange(1, taken + 1, dtype=np.int64), lengths, report
        )


def select(
    stream: Iterable[tuple[Any, ...]],
    budget: Budget,
    pool_rows: int,
    excluded: Iterable[str] = (),
) -> Selection:
    """The selection from one stream of (ids, scores) or (ids, scores, lengths).

    `pool_rows` and `excluded` are those of `TopRanked`.

    >>> import mona
    >>> ids, scores = ["a", "b", "c"], [0.25, 0.75, 0.5]
    >>> mona.select([(ids, scores)], mona.Budget(count=2), len(ids)).sample_ids
    ['b', 'c']
    """
    ranked = TopRanked(budget, pool_rows, excluded)
    for batch in stream:
        ranked.add(*batch)
    return ranked.finish()


def _array(values: pa.Array | np.ndarray | Sequence[str], kind: pa.DataType) -> pa.Array:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return array.cast(kind)
