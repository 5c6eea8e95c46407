"""mona.explanation against the dense formulas, and against each token's own code."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mona.codes import to_arrow
from mona.errors import RequestError
from mona.explanation import contexts, parts, uses
from mona.similarity import score_codes
from mona.spec import Similarity
from mona.tokens import Tokenised
from tests.mona.test_sae import random_sae
from tests.mona.test_similarity import DENSE_ROW, DENSE_ROWS, LATENTS, make, stored


@settings(deadline=None)
@given(DENSE_ROW, DENSE_ROW, st.sampled_from(["jaccard", "cosine"]))
def test_the_parts_add_up_to_the_score(
    row: list[float], prototype: list[float], similarity: Similarity
) -> None:
    code, vector = make(stored([row])), stored([prototype])[0].astype(np.float32)
    found = parts(code, vector, similarity)
    assert sum(part.part for part in found) == pytest.approx(
        float(score_codes(code, vector[None], similarity)[0, 0]), rel=1e-5, abs=1e-7
    )
    assert [part.part for part in found] == sorted((p.part for p in found), reverse=True)
    shared = np.flatnonzero((stored([row])[0] > 0) & (vector > 0))
    assert sorted(part.latent for part in found) == shared.tolist()


def test_a_part_is_the_overlap_over_the_union() -> None:
    z, p = np.zeros((1, LATENTS)), np.zeros(LATENTS, np.float32)
    z[0, [2, 5, 7]] = [1, 3, 4]
    p[[2, 5, 9]] = [2, 1, 5]
    # min: 1 and 1; max: 2, 3, 4 and 5.
    assert [(part.latent, part.part) for part in parts(make(z), p, "jaccard")] == [
        (2, pytest.approx(1 / 14)),
        (5, pytest.approx(1 / 14)),
    ]


def test_a_distance_has_no_parts() -> None:
    with pytest.raises(RequestError, match="no sum over shared latents"):
        parts(make(np.ones((1, LATENTS))), np.ones(LATENTS, np.float32), "euclidean")


@settings(deadline=None)
@given(DENSE_ROWS, st.lists(st.integers(0, LATENTS - 1), min_size=1, unique=True))
def test_uses_are_those_of_the_dense_rows(dense: list[list[float]], latents: list[int]) -> None:
    rows = stored(dense)
    ids = [f"s{len(rows) - i}" for i in range(len(rows))]
    l1, indices, values = to_arrow(make(rows))
    table = pa.table(
        [pa.array(ids), l1, indices, values], names=["sample_id", "l1", "indices", "values"]
    )
    for batch_rows in (1, 2, len(rows)):
        found = uses(table.to_batches(max_chunksize=batch_rows), latents, 2)
        for latent, use in zip(latents, found, strict=True):
            active = [(-rows[i, latent], ids[i]) for i in np.flatnonzero(rows[:, latent])]
            assert use.active == len(active)
            assert use.strongest == [(-value, name) for value, name in sorted(active)[:2]]


class Letters:
    """A tokenizer whose token i is the letter i."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


def test_a_context_is_the_token_with_the_largest_value() -> None:
    sae = random_sae()
    states = torch.randn(9, sae.d, generator=torch.Generator().manual_seed(1))
    counted = np.ones(12, bool)
    counted[[0, 4, 11]] = False
    row = Tokenised(np.arange(12, dtype=np.int32), counted, 12)
    dense = torch.zeros(9, sae.latents)
    for t in range(9):
        active = sae.active(states[t : t + 1])
        dense[t, active.latents] = active.values
    latents = [*range(sae.latents)]
    found = list(contexts(sae, Letters(), row, states, latents, None))
    places = np.flatnonzero(counted)
    for latent, context in zip(latents, found, strict=True):
        if dense[:, latent].max() == 0:
            assert context is None
            continue
        at = int(places[int(dense[:, latent].argmax())])
        assert context is not None
        assert context.value == pytest.approx(float(dense[:, latent].max()), rel=1e-5)
        letters = "abcdefghijkl"
        assert context.token == letters[at]
        assert context.before == letters[max(0, at - 8) : at]
        assert context.after == letters[at + 1 : at + 5]
    assert any(found)
    assert not all(found)
