"""The incremental store of encodings: which samples still need a forward pass, the pass
itself in committed windows, and the tables it fills.

Two tables a population (a pool, or a target's examples): `activations` holds one row of
dense views a sample and encoder fingerprint, with the token activations themselves where
the disk budget allows; `codes` one sparse row a sample and codes fingerprint. The
arithmetic is `mona.encoder`, `mona.views` and `mona.sae`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mona.codes import Codes, concatenate, to_arrow
from mona.errors import WorkError
from mona.sample import from_records
from resources.engine import Engine
from resources.store import Store

if TYPE_CHECKING:
    import torch

    from mona.encoder import Encoder, TokenStates
    from mona.sae import SparseAutoencoder
    from mona.spec import ModelSpec
    from mona.tokens import Tokenised
    from resources.models import Models

KEY = {b"lance-schema:unenforced-primary-key": b"true"}
KEY_FIELD = pa.field("sample_id", pa.string(), nullable=False, metadata=KEY)
_READ_ROWS = 2_048
_ESTIMATE_ROWS = 512
_DRAWN_ROWS = 128


def codes_schema(fingerprint: str) -> pa.Schema:
    """One row a sample: counted tokens, untruncated length in tokens, and its sparse code."""
    return pa.schema(
        [
            KEY_FIELD,
            pa.field("n_tokens", pa.int32()),
            pa.field("length", pa.int32()),
            pa.field("l1", pa.float32()),
            pa.field("indices", pa.list_(pa.uint32())),
            pa.field("values", pa.list_(pa.float16())),
        ],
        metadata={b"fingerprint": fingerprint.encode()},
    )


def activations_schema(fingerprint: str, width: int, mlp_width: int, dtype: str) -> pa.Schema:
    """One row a sample: the dense views (float16), the mean token norm, and the counted
    tokens' residual streams as raw bytes of `dtype` [n_tokens, width], or null."""
    return pa.schema(
        [
            KEY_FIELD,
            pa.field("n_tokens", pa.int32()),
            pa.field("length", pa.int32()),
            pa.field("norm", pa.float32()),
            pa.field("mean", pa.list_(pa.float16(), width)),
            pa.field("weighted_mean", pa.list_(pa.float16(), width)),
            pa.field("mlp_topk", pa.list_(pa.float16(), mlp_width)),
            pa.field("tokens", pa.large_binary()),
        ],
        metadata={b"fingerprint": fingerprint.encode(), b"dtype": dtype.encode()},
    )


@dataclass(frozen=True, slots=True)
class Population:
    """Whose encodings: the samples of `samples_table`, under `kind` '' or 'example_'."""

    kind: str
    name: str
    samples_table: str

    def activations_table(self, encoder_fingerprint: str) -> str:
        """Shared by all models whose entries mean the same encoder."""
        return f"{self.kind}activations.{self.name}.{encoder_fingerprint}"

    def codes_table(self, model: str, codes_fingerprint: str) -> str:
        """One model's codes under one fingerprint."""
        return f"{self.kind}codes.{self.name}.{model}.{codes_fingerprint}"


def pool_population(dataset: str) -> Population:
    """The samples of a dataset's pool."""
    return Population("", dataset, f"pool.{dataset}")


def examples_population(target: str) -> Population:
    """The representative examples of a target."""
    return Population("example_", target, f"examples.{target}")


@dataclass(slots=True)
class SyncReport:
    """What one synchronisation did."""

    samples: int = 0
    forwarded: int = 0
    forwarded_tokens: int = 0
    from_cache: int = 0
    removed: int = 0
    cache_refused: str = ""
    padded_tokens: int = 0
    # Residual streams of a seeded draw of the samples that got codes, to judge the SAE on.
    drawn: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Encoded:
    """One window's rows, in the order of their positions in the samples table."""

    ids: list[str] = field(default_factory=list)
    n_tokens: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    views: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tokens: list[bytes | None] = field(default_factory=list)
    codes: list[Codes] = field(default_factory=list)


@dataclass
class Encodings:
    """The encodings of one population under one encoder.

    `load_encoder` is called only when a sample needs a forward pass. `cache_bytes` is the
    disk budget for token activations of this population.
    """

    store: Store
    engine: Engine
    population: Population
    encoder_fingerprint: str
    load_encoder: Callable[[], Encoder]
    cache_bytes: float = 0.0
    report: SyncReport = field(default_factory=SyncReport)

    @classmethod
    def of_model(
        cls,
        population: Population,
        name: str,
        model: ModelSpec,
        shelf: Models,
        store: Store,
        engine: Engine,
    ) -> Encodings:
        """A population's encodings under a configured model, within its token cache's budget."""
        return cls(
            store,
            engine,
            population,
            shelf.encoder_fingerprint(name, model),
            lambda: shelf.encoder(name, model),
            cache_bytes=model.token_cache_gb * 1e9,
        )

    @property
    def table(self) -> str:
        """The activations table."""
        return self.population.activations_table(self.encoder_fingerprint)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded at first use, and the activations table made ready for it."""
        encoder = self.load_encoder()
        dtype = str(encoder.dtype).removeprefix("torch.")
        self.store.ensure(
            self.table,
            activations_schema(self.encoder_fingerprint, encoder.width, encoder.mlp_width, dtype),
        )
        return encoder

    @cached_property
    def sample_ids(self) -> pa.Array:
        """Every sample of the population, in table order."""
        return self.store.sample_ids(self.population.samples_table)

    @cached_property
    def caches_tokens(self) -> bool:
        """Whether the population's token activations fit the disk budget, by an estimate from
        a seeded draw of rows; the refusal with its figures is in the report."""
        if not self.cache_bytes:
            return False
        draw = np.random.default_rng(0).permutation(len(self.sample_ids))[:_ESTIMATE_ROWS]
        counted = [int(row.counted.sum()) for _, row in self._tokenised(np.sort(draw))]
        tokens = int(np.mean(counted) * len(self.sample_ids)) if counted else 0
        needed = tokens * self.encoder.width * self.encoder.dtype.itemsize
        if needed <= self.cache_bytes:
            return True
        self.report.cache_refused = (
            f"token cache refused: about {tokens:,} tokens need {needed / 1e9:.2f} GB, "
            f"the budget is {self.cache_bytes / 1e9:.2f} GB"
        )
        return False

    def sync(
        self,
        codes_table: str | None,
        codes_fingerprint: str,
        sae: SparseAutoencoder | None,
        *,
        k: int | None,
        pooling: Literal["mean", "sum"],
        progress: Callable[[int], None] = lambda _: None,
    ) -> SyncReport:
        """Brings the activations, and with `codes_table` the codes, level with the population.

        Each sample without a stored row passes the model once; rows whose sample left are
        removed. Every window is committed, so a crash costs at most one window.
        """
        self.report = SyncReport(samples=len(self.sample_ids))
        if codes_table is not None:
            self.store.ensure(codes_table, codes_schema(codes_fingerprint))
        for table in filter(None, (self.table, codes_table)):
            self._remove_departed(table)
        encode: Callable[[torch.Tensor, np.ndarray], Codes] | None = None
        if sae is not None and codes_table is not None:

            def encode(states: torch.Tensor, offsets: np.ndarray) -> Codes:
                return sae.encode(states, offsets, k, pooling)

        have_views, have_tokens = self._stored_views()
        have_codes = _contains(
            self.sample_ids, self.store.sample_ids(codes_table) if codes_table else None
        )
        needs_codes = ~have_codes if encode is not None else np.zeros(len(have_codes), bool)
        from_cache = needs_codes & have_views & have_tokens
        forward = (needs_codes & ~from_cache) | ~have_views
        progress(int(len(forward) - (from_cache | forward).sum()))
        new = np.flatnonzero(needs_codes)
        draw = set(np.random.default_rng(0).permutation(new)[:_DRAWN_ROWS].tolist())
        if from_cache.any():
            assert encode is not None
            assert codes_table is not None
            cached = np.flatnonzero(from_cache)
            self._codes_from_cache(cached, codes_table, encode, progress)
            self.report.drawn.update(self._read_tokens(cached[np.isin(cached, list(draw))]))
        for window in self._windows(np.flatnonzero(forward)):
            positions = np.array([position for position, _ in window])
            encoded = self._forward(window, encode, self.report.drawn, draw)
            self._commit(encoded, ~have_views[positions], needs_codes[positions], codes_table)
            progress(len(window))
        if self.report.forwarded:
            for table in filter(None, (self.table, codes_table)):
                self.store.compact(table)
        return self.report

    def token_states(self, positions: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """(position, residual streams of the counted tokens [n, d]) of samples, in the order
        asked for: read from the cache where they are, else one forward pass, cached if the
        budget allows."""
        have_views, have_tokens = self._stored_views()
        for start in range(0, len(positions), _READ_ROWS):
            chunk = np.asarray(positions[start : start + _READ_ROWS])
            cached = chunk[have_tokens[chunk]]
            states = dict(self._read_tokens(cached)) if len(cached) else {}
            waiting = list(chunk)
            for window in self._windows(np.sort(chunk[~have_tokens[chunk]])):
                window_states: dict[int, torch.Tensor] = {}
                wanted = {position for position, _ in window}
                encoded = self._forward(window, None, window_states, wanted)
                if self.caches_tokens:
                    fresh = ~have_views[[position for position, _ in window]]
                    self._commit(encoded, fresh, np.zeros(len(window), bool), None)
                states.update(window_states)
                while waiting and int(waiting[0]) in states:
                    position = int(waiting.pop(0))
                    yield position, states.pop(position)
            for position in waiting:
                yield int(position), states.pop(int(position))

    def _stored_views(self) -> tuple[np.ndarray, np.ndarray]:
        """(has a row, has cached tokens) for each sample of the population."""
        if not self.store.exists(self.table):
            empty = np.zeros(len(self.sample_ids), bool)
            return empty, empty.copy()
        with_tokens = [
            batch.column(0)
            for batch in self.store.scan(self.table, ["sample_id"], where="tokens IS NOT NULL")
        ]
        return (
            _contains(self.sample_ids, self.store.sample_ids(self.table)),
            _contains(self.sample_ids, pa.concat_arrays(with_tokens) if with_tokens else None),
        )

    def _remove_departed(self, table: str) -> None:
        if not self.store.exists(table):
            return
        stored = self.store.sample_ids(table)
        gone = stored.filter(pc.invert(pc.is_in(stored, self.sample_ids)))
        removed = self.store.delete(table, gone.to_pylist())
        self.report.removed = max(self.report.removed, removed)

    def _tokenised(self, positions: np.ndarray) -> Iterator[tuple[int, Tokenised]]:
        table = self.population.samples_table
        for start in range(0, len(positions), _READ_ROWS):
            chunk = positions[start : start + _READ_ROWS]
            rows = self.store.take(table, chunk, ["messages"]).column("messages").to_pylist()
            messages = [from_records(row) for row in rows]
            yield from zip(
                chunk.tolist(), self.encoder.renderer.render_batch(messages), strict=True
            )

    def _windows(self, positions: np.ndarray) -> Iterator[list[tuple[int, Tokenised]]]:
        window: list[tuple[int, Tokenised]] = []
        tokens = 0
        for position, row in self._tokenised(positions):
            window.append((position, row))
            tokens += len(row.ids)
            if tokens >= self.engine.window_tokens:
                yield window
                window, tokens = [], 0
        if window:
            yield window

    def _forward(
        self,
        window: list[tuple[int, Tokenised]],
        encode: Callable[[torch.Tensor, np.ndarray], Codes] | None,
        keep_states: dict[int, torch.Tensor],
        wanted: Set[int],
    ) -> _Encoded:
        """Runs the window; the residual streams of `wanted` positions go into `keep_states`."""
        from mona.encoder import plan_batches
        from mona.views import VIEWS, dense_views, token_norms

        rows = [row for _, row in window]
        made: dict[int, dict[str, Any]] = {}
        keep_tokens = self.caches_tokens
        for batch in plan_batches([len(row.ids) for row in rows], self.engine.forward_tokens):
            states = self.encoder.forward([rows[i] for i in batch])
            views = dense_views(states, VIEWS)
            norms = token_norms(states)
            codes = encode(states.states, states.offsets) if encode is not None else None
            self.report.padded_tokens += len(batch) * max(len(rows[i].ids) for i in batch)
            for row_in_batch, i in enumerate(batch):
                span = slice(
                    int(states.offsets[row_in_batch]), int(states.offsets[row_in_batch + 1])
                )
                if window[i][0] in wanted:
                    keep_states[window[i][0]] = states.states[span].float().cpu()
                made[i] = {
                    "views": {name: view[row_in_batch] for name, view in views.items()},
                    "norm": float(norms[span].mean()) if span.stop > span.start else 0.0,
                    "tokens": _to_bytes(states, span) if keep_tokens else None,
                    "codes": _row(codes, row_in_batch) if codes is not None else None,
                    "n_tokens": span.stop - span.start,
                }
        encoded = _Encoded()
        ids = self.sample_ids.take(pa.array([position for position, _ in window])).to_pylist()
        for i, row in enumerate(rows):
            encoded.ids.append(ids[i])
            encoded.n_tokens.append(made[i]["n_tokens"])
            encoded.lengths.append(row.length)
            encoded.norms.append(made[i]["norm"])
            encoded.tokens.append(made[i]["tokens"])
            for name, view in made[i]["views"].items():
                encoded.views.setdefault(name, []).append(view)
            if made[i]["codes"] is not None:
                encoded.codes.append(made[i]["codes"])
        self.report.forwarded += len(rows)
        self.report.forwarded_tokens += sum(len(row.ids) for row in rows)
        return encoded

    def _commit(
        self,
        encoded: _Encoded,
        fresh_views: np.ndarray,
        fresh_codes: np.ndarray,
        codes_table: str | None,
    ) -> None:
        # Views before codes: a row of codes then always has its activations beside it.
        schema = self.store.open(self.table).schema
        columns = [
            pa.array(encoded.ids, pa.string()),
            pa.array(encoded.n_tokens, pa.int32()),
            pa.array(encoded.lengths, pa.int32()),
            pa.array(encoded.norms, pa.float32()),
            *(
                pa.FixedSizeListArray.from_arrays(
                    pa.array(np.concatenate(encoded.views[name]), pa.float16()),
                    len(encoded.views[name][0]),
                )
                for name in ("mean", "weighted_mean", "mlp_topk")
            ),
            pa.array(encoded.tokens, pa.large_binary()),
        ]
        views = pa.Table.from_arrays(columns, schema=schema)
        self.store.append(self.table, views.filter(pa.array(fresh_views)))
        if codes_table is not None and encoded.codes:
            rows = _codes_rows(
                encoded.ids,
                encoded.n_tokens,
                encoded.lengths,
                concatenate(encoded.codes),
                self.store.open(codes_table).schema,
            )
            self.store.append(codes_table, rows.filter(pa.array(fresh_codes)))

    def _read_tokens(self, positions: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
        ids = self.sample_ids.take(pa.array(positions)).to_pylist()
        rows = self.store.rows(self.table, ["n_tokens", "tokens"], ids)
        schema = self.store.open(self.table).schema
        tokens = rows.column("tokens")
        for i, (position, n) in enumerate(
            zip(positions.tolist(), rows.column("n_tokens").to_pylist(), strict=True)
        ):
            yield position, _from_bytes(tokens[i].as_py(), n, schema)

    def _codes_from_cache(
        self,
        positions: np.ndarray,
        codes_table: str,
        encode: Callable[[torch.Tensor, np.ndarray], Codes],
        progress: Callable[[int], None],
    ) -> None:
        import torch

        schema = self.store.open(codes_table).schema
        stored = self.store.sample_ids(self.table)
        ids = self.sample_ids.take(pa.array(positions))
        # Read in the order the rows lie in the table: one pass over the cache.
        places = np.sort(pc.index_in(ids, stored).to_numpy(zero_copy_only=False))
        cache_schema = self.store.open(self.table).schema
        per_read = 256
        for start in range(0, len(places), per_read):
            rows = self.store.take(
                self.table,
                places[start : start + per_read],
                ["sample_id", "n_tokens", "length", "tokens"],
            )
            counts = rows.column("n_tokens").to_pylist()
            tokens = rows.column("tokens")
            states = torch.cat(
                [_from_bytes(tokens[i].as_py(), n, cache_schema) for i, n in enumerate(counts)]
            )
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            codes = encode(states, offsets)
            self.store.append(
                codes_table,
                _codes_rows(
                    rows.column("sample_id").to_pylist(),
                    counts,
                    rows.column("length").to_pylist(),
                    codes,
                    schema,
                ),
            )
            self.report.from_cache += len(counts)
            progress(len(counts))


def _codes_rows(
    ids: list[str], n_tokens: list[int], lengths: list[int], codes: Codes, schema: pa.Schema
) -> pa.Table:
    l1, indices, values = to_arrow(codes)
    return pa.Table.from_arrays(
        [
            pa.array(ids, pa.string()),
            pa.array(n_tokens, pa.int32()),
            pa.array(lengths, pa.int32()),
            l1,
            indices,
            values,
        ],
        schema=schema,
    )


def _contains(ids: pa.Array, stored: pa.Array | None) -> np.ndarray:
    if stored is None or not len(stored):
        return np.zeros(len(ids), bool)
    return pc.is_in(ids, stored).to_numpy(zero_copy_only=False)


def _row(codes: Codes, i: int) -> Codes:
    start, end = int(codes.indptr[i]), int(codes.indptr[i + 1])
    return Codes(
        np.array([0, end - start], np.int64),
        codes.indices[start:end],
        codes.values[start:end],
        codes.l1[i : i + 1],
    )


def _to_bytes(states: TokenStates, span: slice) -> bytes:
    import torch

    rows = states.states[span].cpu().contiguous()
    return rows.view(torch.int16 if rows.dtype == torch.bfloat16 else rows.dtype).numpy().tobytes()


def _from_bytes(raw: bytes, n: int, schema: pa.Schema) -> torch.Tensor:
    import torch

    width = schema.field("mean").type.list_size
    kind = getattr(torch, schema.metadata[b"dtype"].decode())
    # frombuffer refuses an empty buffer, and a sample may have no counted token.
    rows = torch.frombuffer(bytearray(raw), dtype=kind) if raw else torch.zeros(0, dtype=kind)
    if len(rows) != n * width:
        raise WorkError(f"token cache: {len(rows)} values are not {n} tokens of width {width}")
    return rows.view(n, width)
