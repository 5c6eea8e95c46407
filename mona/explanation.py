"""A score taken apart: which latents made it, and what a latent means.

Belongs here: each latent's part of a score, a latent's strongest samples in a pool, and the
token it answers to most in a sample. The scores themselves are `mona.similarity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mona.codes import Codes, from_arrow
from mona.errors import RequestError
from mona.spec import Similarity

if TYPE_CHECKING:
    from torch import Tensor

    from mona.sae import SparseAutoencoder
    from mona.tokens import Tokenised

_BEFORE, _AFTER = 8, 4  # tokens of context shown around a token


@dataclass(frozen=True, slots=True)
class Part:
    """One latent's part of a score: its value in the sample and in the prototype, and what it
    adds to the score. The parts of a sample add up to its score."""

    latent: int
    sample: float
    prototype: float
    part: float


@dataclass(slots=True)
class Use:
    """How a pool uses a latent: in how many samples it is active, and (value, sample id) of
    those where it is strongest, strongest first."""

    active: int = 0
    strongest: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Context:
    """The token of a sample at which a latent is strongest: its value there, and the text
    before it, of it and after it."""

    value: float
    before: str
    token: str
    after: str


def parts(code: Codes, prototype: np.ndarray, similarity: Similarity) -> list[Part]:
    """The parts of one row's score against a prototype [d_sae], largest first.

    Generalised Jaccard: min(z_k, p_k) / (|z|_1 + |p|_1 - m) (arXiv 2503.15573, with m as in
    `mona.similarity`); cosine: z_k p_k / (|z|_2 |p|_2). RequestError for euclidean: a distance
    is made by what two vectors do not share. Only latents active in both have a part.
    """
    if similarity == "euclidean":
        raise RequestError("a euclidean score is no sum over shared latents: nothing to explain")
    if len(code) != 1:
        raise ValueError(f"one row is explained at a time, not {len(code)}")
    latents = code.indices.astype(np.intp)
    z, p = code.values.astype(np.float64), prototype[latents].astype(np.float64)
    whole = prototype.astype(np.float64)
    if similarity == "jaccard":
        terms = np.minimum(z, p)
        scale = z.sum() + whole.sum() - terms.sum()
    else:
        terms = z * p
        scale = float(np.linalg.norm(z) * np.linalg.norm(whole))
    order = np.lexsort((latents, -terms))
    return [
        Part(int(latents[i]), float(z[i]), float(p[i]), float(terms[i] / scale))
        for i in order
        if terms[i] > 0
    ]


def uses(batches: Iterable[pa.RecordBatch], latents: Sequence[int], strongest: int) -> list[Use]:
    """How the rows of `batches` (columns `sample_id`, `l1`, `indices`, `values`) use each of
    `latents`, with the `strongest` samples of each; ties go by sample id. One pass."""
    found = [Use() for _ in latents]
    for batch in batches:
        codes = from_arrow(batch)
        for latent, use in zip(latents, found, strict=True):
            places = np.flatnonzero(codes.indices == latent)
            use.active += len(places)
            if len(places) > strongest:
                values = codes.values[places]
                # Those that tie with the last one may still come before it by their id.
                least = np.partition(values, -strongest)[-strongest]
                places = places[values >= least]
            rows = np.searchsorted(codes.indptr, places, side="right") - 1
            ids = batch.column("sample_id").take(pa.array(rows, pa.int64())).to_pylist()
            use.strongest += zip(codes.values[places].astype(float).tolist(), ids, strict=True)
            use.strongest.sort(key=lambda pair: (-pair[0], pair[1]))
            del use.strongest[strongest:]
    return found


def contexts(
    sae: SparseAutoencoder,
    tokenizer: Any,
    row: Tokenised,
    states: Tensor,
    latents: Iterable[int],
    k: int | None,
) -> Iterator[Context | None]:
    """For each latent the token of a sample at which it is strongest; None where it is active
    at none of the counted tokens. states: the sample's counted tokens [n, d]."""
    places = np.flatnonzero(row.counted)
    strongest: dict[int, tuple[float, int]] = {}
    wanted = list(latents)
    for start in range(0, len(states), sae.chunk_tokens):
        active = sae.active(states[start : start + sae.chunk_tokens], k)
        for latent in wanted:
            values = active.values[active.latents == latent]
            if len(values) and float(values.max()) > strongest.get(latent, (0.0, 0))[0]:
                token = int(active.tokens[active.latents == latent][int(values.argmax())])
                strongest[latent] = (float(values.max()), int(places[start + token]))
    for latent in wanted:
        if latent not in strongest:
            yield None
            continue
        value, at = strongest[latent]

        def text(begin: int, end: int) -> str:
            return str(tokenizer.decode(row.ids[max(0, begin) : end].tolist()))

        yield Context(
            value, text(at - _BEFORE, at), text(at, at + 1), text(at + 1, at + 1 + _AFTER)
        )
