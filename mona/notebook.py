"""The way from files to an exported subset in a notebook: what `import mona` adds to the method.

Belongs here: the few steps that are awkward by hand, over what fits in memory. The steps
themselves are `mona.pool`, `mona.encoder`, `mona.sae`, `mona.explanation` and `mona.exports`;
pools beyond memory, and a record of what went in, are the pipeline's.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from mona.codes import Codes, concatenate, from_arrow, to_arrow
from mona.errors import RequestError, WorkError
from mona.explanation import Context, Part, contexts, parts
from mona.exports import export
from mona.files import DataFile
from mona.pool import PoolSource, account, build_pool
from mona.sample import Message, from_records, to_records
from mona.selection import Selection
from mona.spec import PoolFormat, Similarity, Source
from mona.tokens import SetAside, Tokenised

if TYPE_CHECKING:
    from mona.encoder import Encoder
    from mona.sae import SparseAutoencoder

# Padded tokens of one forward pass.
_BATCH_TOKENS = 4_096


@dataclass(frozen=True, slots=True)
class Sample:
    """One distinct conversation of a pool, with the licence it came under.

    id: 32 hex digits that follow from the messages alone (`mona.sample.sample_id`); source: the
    name that `read_pool` was given; licence: as it was given.

    >>> import mona
    >>> sample = mona.read_pool(pool_file, licence="CC0-1.0")[0]
    >>> [message.role for message in sample.messages], sample.licence
    (['user', 'assistant'], 'CC0-1.0')
    >>> len(sample.id)
    32
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    licence: str


def read_pool(
    *files: str | Path,
    source: str = "notebook",
    licence: str = "unknown",
    format: PoolFormat = "auto",
    max_bad_rows: float = 0.01,
) -> list[Sample]:
    """The distinct samples of JSONL, JSON, Parquet, CSV or TSV files (plain, .gz, .zst), in the
    order of their first occurrence.

    Formats are told from the rows' own fields, or named. A row that can't be read is left out,
    and a warning says how many were and why. `source` is a lower-case slug.

    Raises RequestError for files that are not there or hold no rows and for a wrong argument;
    WorkError where the rest of a file is lost, where more than the share `max_bad_rows` is bad,
    and where no row is good.

    >>> import mona
    >>> pool = mona.read_pool(pool_file)
    >>> len(pool), pool[0].messages[0].content
    (12, 'How many plums are 2 plums and 1 more?')
    """
    if not files:
        raise RequestError("read_pool: no files were named")
    try:
        origin = Source(name=source, path=str(files[0]), format=format, licence=licence)
    except ValidationError as error:
        fault = error.errors()[0]
        reason = fault["msg"].removeprefix("Value error, ")
        raise RequestError(f"read_pool: {fault['loc'][0]}: {reason}") from error
    paths = [Path(file).expanduser() for file in files]
    for path in paths:
        if not path.is_file():
            raise RequestError(f"{path}: there is no such file")
    with tempfile.TemporaryDirectory(prefix="mona-") as staging:
        made = build_pool(
            [PoolSource(origin, [DataFile(path) for path in paths])],
            Path(staging),
            max_bad_rows=max_bad_rows,
        )
        rows = pq.read_table(made.parquet, columns=["sample_id", "messages"]).to_pylist()
    if made.rows_bad:
        warnings.warn(account(source, made.accounts()), stacklevel=2)
    return [
        Sample(row["sample_id"], from_records(row["messages"]), source, licence) for row in rows
    ]


def encode(
    samples: Sequence[Sample],
    encoder: Encoder,
    sae: SparseAutoencoder,
    *,
    k: int | None = None,
    pooling: Literal["mean", "sum"] = "mean",
) -> Codes:
    """The sparse codes of S samples, a row each in their order: one forward pass a sample, the
    SAE over each counted token, and the mean (or sum) of a sample's tokens.

    k: latents kept a token in place of the SAE's own. Raises WorkError, naming the sample, where
    the model's template can't render one truly; `encoder.renderer.render_batch` says which those
    are. RequestError where model and SAE do not fit each other.

    >>> import mona
    >>> encoder = mona.Encoder.load(model_folder, layer=3)
    >>> sae = mona.SparseAutoencoder.load(sae_folder)
    >>> codes = mona.encode(mona.read_pool(pool_file), encoder, sae)
    >>> len(codes), bool((codes.l1 > 0).all())
    (12, True)
    """
    from mona.encoder import plan_batches

    rows = _rendered(samples, encoder)
    order: list[int] = []
    made: list[Codes] = []
    for batch in plan_batches([len(row.ids) for row in rows], _BATCH_TOKENS):
        states = encoder.forward([rows[i] for i in batch])
        made.append(sae.encode(states.states, states.offsets, k, pooling))
        order += batch
    columns = pa.table(list(to_arrow(concatenate(made))), names=["l1", "indices", "values"])
    return from_arrow(columns.take(pa.array(np.argsort(order), pa.int64())))


def explain(
    sample: Sample,
    prototype: np.ndarray,
    encoder: Encoder,
    sae: SparseAutoencoder,
    *,
    similarity: Similarity = "jaccard",
    k: int | None = None,
    count: int = 10,
) -> list[tuple[Part, Context | None]]:
    """The `count` latents that add most to a sample's score against a prototype float32 [d_sae],
    largest first: each one's part of the score, and the token at which it is strongest.

    Of mean-pooled codes; the parts of all latents add up to the score. Raises as `encode`, and
    RequestError for euclidean, whose scores have no parts.

    >>> import mona
    >>> encoder = mona.Encoder.load(model_folder, layer=3)
    >>> sae = mona.SparseAutoencoder.load(sae_folder)
    >>> pool = mona.read_pool(pool_file)
    >>> prototype = mona.mean_prototype(mona.encode(pool[:3], encoder, sae), sae.latents)
    >>> why = mona.explain(pool[0], prototype, encoder, sae, count=2)
    >>> part, context = why[0]
    >>> part.part >= why[1][0].part > 0, context.token in context.before + context.token
    (True, True)
    """
    (row,) = _rendered([sample], encoder)
    states = encoder.forward([row])
    code = sae.encode(states.states, states.offsets, k)
    shown = parts(code, prototype, similarity)[:count]
    latents = [part.latent for part in shown]
    found = contexts(sae, encoder.renderer.tokenizer, row, states.states, latents, k)
    return list(zip(shown, found, strict=True))


def export_selection(
    selection: Selection,
    samples: Sequence[Sample],
    format: str,
    out: str | Path,
    *,
    force: bool = False,
) -> list[Path]:
    """Writes the chosen of `samples`, best first, for another trainer (the files of `mona.exports`
    say what each format looks like); returns the files written.

    Raises RequestError where something is at `out` already and `force` is not given, and where
    the format can't hold a conversation; ValueError where a chosen sample is not among `samples`.

    >>> import mona
    >>> pool = mona.read_pool(pool_file, licence="CC0-1.0")
    >>> scores = [len(sample.messages[-1].content) for sample in pool]
    >>> ids = [sample.id for sample in pool]
    >>> selection = mona.select([(ids, scores)], mona.Budget(count=2), len(pool))
    >>> mona.export_selection(selection, pool, "jsonl", "subset.jsonl")
    [PosixPath('subset.jsonl')]
    """
    known = {sample.id: sample for sample in samples}
    missing = [key for key in selection.sample_ids if key not in known]
    if missing:
        raise ValueError(f"{len(missing)} chosen samples are not among these, first {missing[0]}")
    rows = (
        {
            "sample_id": key,
            "messages": to_records(known[key].messages),
            "score": float(score),
            "rank": int(rank),
            "source": known[key].source,
            "licence": known[key].licence,
        }
        for key, score, rank in zip(
            selection.sample_ids, selection.scores, selection.ranks, strict=True
        )
    )
    return export(rows, format, Path(out).expanduser(), force=force)


def _rendered(samples: Sequence[Sample], encoder: Encoder) -> list[Tokenised]:
    rows: list[Tokenised] = []
    made = encoder.renderer.render_batch([sample.messages for sample in samples])
    for sample, row in zip(samples, made, strict=True):
        if isinstance(row, SetAside):
            raise WorkError(f"sample {sample.id} can't be rendered truly: {row.reason}")
        rows.append(row)
    return rows
