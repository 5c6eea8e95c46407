"""The incremental store of encodings: which samples of a population still need a forward pass,
the pass itself in committed windows, and what each window writes.

The tables are `resources.encoding_tables`; the arithmetic is `mona.encoder`, `mona.views` and
`mona.sae`. The population's texts are read through the table that is handed in, at the version
the step's record names, and each text's own hash is compared with its id before it is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mona.codes import Codes, concatenate, row_sums, to_arrow
from mona.errors import WorkError
from mona.sample import from_records, sample_id
from mona.tokens import SetAside
from resources.encoding_tables import Population, activations_schema, codes_schema, view_schema
from resources.engine import Engine
from resources.store import Store
from resources.table_at import TableAt

if TYPE_CHECKING:
    import torch

    from mona.encoder import Encoder, TokenStates
    from mona.sae import SparseAutoencoder
    from mona.tokens import Tokenised
    from resources.models import Models, ResolvedModel

_READ_ROWS = 2_048
_CACHE_ROWS = 256
_ESTIMATE_ROWS = 512
_DRAWN_ROWS = 128


@dataclass(frozen=True, slots=True)
class CodesOf:
    """What a table of codes is made with."""

    table: str
    fingerprint: str
    sae: SparseAutoencoder
    k: int | None
    pooling: Literal["mean", "sum"]

    @classmethod
    def of_model(
        cls, population: Population, model: ResolvedModel, sae: str, shelf: Models
    ) -> CodesOf:
        """A population's codes under a configured model and the SAE of this digest."""
        meaning = model.codes(sae)
        table = population.codes_table(model.name, meaning)
        spec = model.spec
        return cls(table, meaning, shelf.sae(model.name, sae), spec.k, spec.pooling)

    def encode(self, states: torch.Tensor, offsets: np.ndarray) -> Codes:
        """The codes of samples whose tokens lie at `offsets` [S + 1] of `states` [T, d]."""
        return self.sae.encode(states, offsets, self.k, self.pooling)


@dataclass(slots=True)
class SyncReport:
    """What one synchronisation did."""

    samples: int = 0
    forwarded: int = 0
    forwarded_tokens: int = 0
    from_cache: int = 0
    departed: int = 0
    cache_refused: str = ""
    padded_tokens: int = 0
    # Residual streams of a seeded draw of the samples that got codes, to judge the SAE on.
    drawn: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Window:
    """Samples between two commits: positions in the population, ids, rendered texts."""

    positions: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    rows: list[Tokenised | SetAside] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The activations table as last read: where each sample of the population lies in it (-1:
    not there), whether its tokens are cached, whether it was set aside."""

    table: TableAt | None
    places: np.ndarray
    cached: np.ndarray
    set_aside: np.ndarray


@dataclass
class Encodings:
    """The encodings of one population under one encoder.

    samples: the population's texts, one version of them. views: the dense views that are stored.
    `load_encoder` is called only when a sample needs a forward pass. `cache_bytes` is the disk
    budget for token activations of this population. The caller holds the lock of `table`.
    """

    store: Store
    engine: Engine
    population: Population
    samples: TableAt
    encoder_fingerprint: str
    load_encoder: Callable[[], Encoder]
    views: Sequence[str] = ()
    cache_bytes: float = 0.0
    report: SyncReport = field(default_factory=SyncReport)

    @classmethod
    def of_model(
        cls,
        population: Population,
        samples: TableAt,
        model: ResolvedModel,
        views: Sequence[str],
        shelf: Models,
        store: Store,
        engine: Engine,
    ) -> Encodings:
        """A population's encodings under a configured model, within its token cache's budget."""
        return cls(
            store,
            engine,
            population,
            samples,
            model.encoder,
            lambda: shelf.encoder(model, views),
            views,
            cache_bytes=model.spec.token_cache_gb * 1e9,
        )

    @property
    def table(self) -> str:
        """The activations table."""
        return self.population.activations_table(self.encoder_fingerprint)

    @property
    def view_tables(self) -> dict[str, str]:
        """View -> its table."""
        return {v: self.population.view_table(v, self.encoder_fingerprint) for v in self.views}

    def _tables(self, codes: CodesOf | None) -> list[str]:
        """Every table that is filled."""
        made = [self.table, *self.view_tables.values()]
        return made if codes is None else [*made, codes.table]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded at first use."""
        return self.load_encoder()

    @property
    def sample_ids(self) -> pa.Array:
        """Every sample of the population, in table order."""
        return self.samples.sample_ids

    @cached_property
    def caches_tokens(self) -> bool:
        """Whether the population's token activations fit the disk budget, by an estimate from
        a seeded draw of rows; the refusal with its figures is in the report."""
        if not self.cache_bytes:
            return False
        draw = np.random.default_rng(0).permutation(len(self.sample_ids))[:_ESTIMATE_ROWS]
        rendered = (row for _, _, row in self._rendered(np.sort(draw)))
        counted = [int(row.counted.sum()) for row in rendered if not isinstance(row, SetAside)]
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
        self, codes: CodesOf | None, progress: Callable[[int], None] = lambda _: None
    ) -> SyncReport:
        """Brings the activations, the views and, where given, the codes level with the
        population.

        Each sample without a stored row passes the model once. Rows whose sample left the
        population stay: who reads them reads the population's. Every window is committed, so a
        crash costs at most one window.
        """
        self.report = SyncReport(samples=len(self.sample_ids))
        self._ensure(codes)
        stored = self._stored
        kept = stored.places >= 0
        self.report.departed = self._departed(stored)
        needs_codes = np.zeros(len(kept), bool)
        if codes is not None:
            coded = self.store.newest(codes.table).sample_ids
            needs_codes = ~_contains(self.sample_ids, coded) & ~stored.set_aside
        whole = kept.copy()
        for view in self.view_tables.values():
            there = self.store.newest(view).sample_ids
            whole &= _contains(self.sample_ids, there) | stored.set_aside
        from_cache = needs_codes & whole & stored.cached
        forward = (needs_codes & ~from_cache) | ~whole
        progress(int(len(forward) - (from_cache | forward).sum()))
        new = np.flatnonzero(needs_codes)
        draw = set(np.random.default_rng(0).permutation(new)[:_DRAWN_ROWS].tolist())
        if from_cache.any():
            assert codes is not None
            cached = np.flatnonzero(from_cache)
            self._codes_from_cache(cached, codes, progress)
            self.report.drawn.update(self._read_tokens(cached[np.isin(cached, list(draw))]))
        for window in self._windows(np.flatnonzero(forward)):
            self._commit(window, codes, self.report.drawn, draw)
            progress(len(window.ids))
        if self.report.forwarded:
            for table in self._tables(codes):
                self.store.compact(table)
        return self.report

    def forget_departed(self, codes: CodesOf | None) -> None:
        """Drops the rows whose sample left the population."""
        for table in self._tables(codes):
            stored = self.store.newest(table).sample_ids
            gone = stored.filter(pc.invert(pc.is_in(stored, self.sample_ids)))
            if self.store.delete(table, gone.to_pylist()):
                self.store.compact(table)

    def token_states(self, positions: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """(position, residual streams of the counted tokens [n, d]) of samples, in the order
        asked for: read from the cache where they are, else one forward pass, cached if the
        budget allows. A sample that was set aside has no tokens."""
        for start in range(0, len(positions), _READ_ROWS):
            chunk = np.asarray(positions[start : start + _READ_ROWS])
            cached = chunk[self._stored.cached[chunk]]
            states = dict(self._read_tokens(cached)) if len(cached) else {}
            waiting = list(chunk)
            for window in self._windows(np.sort(chunk[~self._stored.cached[chunk]])):
                states.update(self._fresh_states(window))
                while waiting and int(waiting[0]) in states:
                    position = int(waiting.pop(0))
                    yield position, states.pop(position)
            for position in waiting:
                yield int(position), states.pop(int(position))

    def _fresh_states(self, window: _Window) -> dict[int, torch.Tensor]:
        import torch

        made: dict[int, torch.Tensor] = {}
        if self.caches_tokens:
            self._ensure(None)
            self._commit(window, None, made, set(window.positions))
        else:
            for _, _, _ in self._forward(window, None, made, set(window.positions)):
                pass
        nothing = torch.zeros((0, self.encoder.width))
        return {position: made.get(position, nothing) for position in window.positions}

    def _ensure(self, codes: CodesOf | None) -> None:
        """Makes the tables that are missing; the encoder is loaded only for those."""
        if codes is not None:
            self.store.ensure(codes.table, codes_schema(codes.fingerprint))
        if not self.store.exists(self.table):
            dtype = str(self.encoder.dtype).removeprefix("torch.")
            schema = activations_schema(self.encoder_fingerprint, self.encoder.width, dtype)
            self.store.ensure(self.table, schema)
            self.__dict__.pop("_stored", None)
        for view, table in self.view_tables.items():
            if not self.store.exists(table):
                width = self.encoder.mlp_width if view == "mlp_topk" else self.encoder.width
                self.store.ensure(table, view_schema(self.encoder_fingerprint, width))

    @cached_property
    def _stored(self) -> _Stored:
        ids = self.sample_ids
        nowhere = np.zeros(len(ids), bool)
        if not self.store.exists(self.table):
            return _Stored(None, np.full(len(ids), -1), nowhere, nowhere)
        table = self.store.newest(self.table)
        rows = table.read(["sample_id", "cached", "set_aside"])
        found = pc.index_in(ids, rows.column("sample_id").combine_chunks())
        places = found.fill_null(-1).to_numpy().astype(np.int64)

        def of_population(flags: pa.ChunkedArray) -> np.ndarray:
            at = flags.to_numpy()
            return np.where(places >= 0, at[places], False) if len(at) else nowhere

        set_aside = pc.is_valid(rows.column("set_aside"))
        return _Stored(
            table, places, of_population(rows.column("cached")), of_population(set_aside)
        )

    def _departed(self, stored: _Stored) -> int:
        """Rows of the activations whose sample is no longer in the population."""
        return 0 if stored.table is None else stored.table.count() - int((stored.places >= 0).sum())

    def _rendered(self, positions: np.ndarray) -> Iterator[tuple[int, str, Tokenised | SetAside]]:
        """(position, id, rendered text). WorkError where a text's hash is not its id."""
        for start in range(0, len(positions), _READ_ROWS):
            chunk = positions[start : start + _READ_ROWS]
            rows = self.samples.take(chunk, ["sample_id", "messages"]).to_pylist()
            texts = [from_records(row["messages"]) for row in rows]
            for row, text in zip(rows, texts, strict=True):
                if sample_id(text) != row["sample_id"]:
                    raise WorkError(
                        f"table '{self.samples.name}' version {self.samples.version}: the text "
                        f"of sample {row['sample_id']} has another id: make the pool anew"
                    )
            ids = [row["sample_id"] for row in rows]
            rendered = self.encoder.renderer.render_batch(texts)
            yield from zip(chunk.tolist(), ids, rendered, strict=True)

    def _windows(self, positions: np.ndarray) -> Iterator[_Window]:
        window, tokens = _Window(), 0
        for position, key, row in self._rendered(positions):
            window.positions.append(position)
            window.ids.append(key)
            window.rows.append(row)
            tokens += 0 if isinstance(row, SetAside) else len(row.ids)
            if tokens >= self.engine.window_tokens:
                yield window
                window, tokens = _Window(), 0
        if window.ids:
            yield window

    def _forward(
        self,
        window: _Window,
        codes: CodesOf | None,
        keep_states: dict[int, torch.Tensor],
        wanted: set[int],
    ) -> Iterator[tuple[list[int], TokenStates, Codes | None]]:
        """(places in the window, states, codes) of each batch; the residual streams of `wanted`
        positions go into `keep_states`."""
        from mona.encoder import plan_batches

        run = [(i, row) for i, row in enumerate(window.rows) if not isinstance(row, SetAside)]
        for batch in plan_batches([len(row.ids) for _, row in run], self.engine.forward_tokens):
            rows = [run[i][1] for i in batch]
            places = [run[i][0] for i in batch]
            states = self.encoder.forward(rows)
            made = codes.encode(states.states, states.offsets) if codes is not None else None
            self.report.forwarded += len(rows)
            self.report.forwarded_tokens += sum(len(row.ids) for row in rows)
            self.report.padded_tokens += len(rows) * max(len(row.ids) for row in rows)
            for i, place in enumerate(places):
                if window.positions[place] in wanted:
                    span = slice(int(states.offsets[i]), int(states.offsets[i + 1]))
                    keep_states[window.positions[place]] = states.states[span].float().cpu()
            yield places, states, made

    def _commit(
        self,
        window: _Window,
        codes: CodesOf | None,
        keep_states: dict[int, torch.Tensor],
        wanted: set[int],
    ) -> None:
        """Runs a window and appends what it gives, activations first: a row of a view or of
        codes then always has its activations beside it."""
        from mona.views import dense_views, token_norms

        order: list[int] = []
        parts: dict[str, list[Any]] = {"tokens": [], "norm": [], "n_tokens": [], "codes": []}
        views: dict[str, list[np.ndarray]] = {view: [] for view in self.views}
        for places, states, made in self._forward(window, codes, keep_states, wanted):
            counts = np.diff(states.offsets)
            order += places
            parts["n_tokens"].append(counts)
            parts["norm"].append(row_sums(token_norms(states), states.offsets) / counts.clip(1))
            parts["codes"].append(made)
            if self.caches_tokens:
                parts["tokens"].append(_to_binary(states))
            for view, values in (dense_views(states, self.views) if self.views else {}).items():
                views[view].append(values)
        in_order = pa.array(np.argsort(order))
        ids = pa.array([window.ids[place] for place in order], pa.string())
        rows = (window.rows[place] for place in order)
        lengths = pa.array(
            [row.length for row in rows if not isinstance(row, SetAside)], pa.int32()
        )
        n_tokens = pa.array(np.concatenate([*parts["n_tokens"], np.zeros(0)]), pa.int32())
        activations = self._activations(ids, n_tokens, lengths, parts).take(in_order)
        self.store.append(self.table, pa.concat_tables([activations, self._aside(window)]))
        self.__dict__.pop("_stored", None)
        if not order:
            return
        for view, table in self.view_tables.items():
            values = np.concatenate(views[view])
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            self._append(table, [ids, lengths, column], in_order)
        if codes is not None:
            columns = to_arrow(concatenate(parts["codes"]))
            self._append(codes.table, [ids, n_tokens, lengths, *columns], in_order)

    def _append(self, table: str, columns: list[pa.Array], order: pa.Array) -> None:
        schema = self.store.newest(table).schema
        self.store.append(table, pa.Table.from_arrays(columns, schema=schema).take(order))

    def _activations(
        self, ids: pa.Array, n_tokens: pa.Array, lengths: pa.Array, parts: dict[str, list[Any]]
    ) -> pa.Table:
        cached = bool(parts["tokens"])
        tokens = pa.chunked_array(parts["tokens"], pa.large_binary()) if cached else None
        columns = [
            ids,
            n_tokens,
            lengths,
            pa.array(np.concatenate([*parts["norm"], np.zeros(0)]), pa.float32()),
            pa.nulls(len(ids), pa.string()),
            pa.array(np.full(len(ids), cached)),
            tokens if tokens is not None else pa.nulls(len(ids), pa.large_binary()),
        ]
        return pa.Table.from_arrays(columns, schema=self.store.newest(self.table).schema)

    def _aside(self, window: _Window) -> pa.Table:
        """The rows of the samples that can't be rendered truly."""
        found = [
            {"sample_id": key, "n_tokens": 0, "length": 0, "set_aside": row.reason, "cached": False}
            for key, row in zip(window.ids, window.rows, strict=True)
            if isinstance(row, SetAside)
        ]
        return pa.Table.from_pylist(found, schema=self.store.newest(self.table).schema)

    def _read_tokens(self, positions: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
        stored = self._stored
        assert stored.table is not None
        if not len(positions):
            return
        rows = stored.table.take(stored.places[positions], ["n_tokens", "tokens"])
        tokens = rows.column("tokens")
        counts = rows.column("n_tokens").to_pylist()
        for i, position in enumerate(positions.tolist()):
            yield position, _from_bytes(tokens[i].as_py(), counts[i], stored.table.schema)

    def _codes_from_cache(
        self, positions: np.ndarray, codes: CodesOf, progress: Callable[[int], None]
    ) -> None:
        import torch

        stored = self._stored
        assert stored.table is not None
        # Read in the order the rows lie in the table: one pass over the cache.
        places = np.sort(stored.places[positions])
        columns = ["sample_id", "n_tokens", "length", "tokens"]
        for start in range(0, len(places), _CACHE_ROWS):
            rows = stored.table.take(places[start : start + _CACHE_ROWS], columns)
            counts = rows.column("n_tokens").to_pylist()
            tokens = rows.column("tokens")
            states = torch.cat(
                [
                    _from_bytes(tokens[i].as_py(), n, stored.table.schema)
                    for i, n in enumerate(counts)
                ]
            )
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            made = to_arrow(codes.encode(states, offsets))
            about = [rows.column(name).combine_chunks() for name in columns[:3]]
            self._append(codes.table, [*about, *made], pa.array(np.arange(len(counts))))
            self.report.from_cache += len(counts)
            progress(len(counts))


def _contains(ids: pa.Array, stored: pa.Array) -> np.ndarray:
    if not len(stored):
        return np.zeros(len(ids), bool)
    return pc.is_in(ids, stored).to_numpy(zero_copy_only=False)


def _to_binary(states: TokenStates) -> pa.Array:
    """The samples' residual streams, one large_binary value each, without a copy a sample."""
    import torch

    rows = states.states.cpu().contiguous()
    raw = rows.view(torch.int16 if rows.dtype == torch.bfloat16 else rows.dtype).numpy()
    offsets = states.offsets.astype(np.int64) * (rows.shape[1] * raw.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(raw)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _from_bytes(raw: bytes, n: int, schema: pa.Schema) -> torch.Tensor:
    import torch

    width = int(schema.metadata[b"width"])
    kind = getattr(torch, schema.metadata[b"dtype"].decode())
    # frombuffer refuses an empty buffer, and a sample may have no counted token.
    rows = torch.frombuffer(bytearray(raw), dtype=kind) if raw else torch.zeros(0, dtype=kind)
    if len(rows) != n * width:
        raise WorkError(f"token cache: {len(rows)} values are not {n} tokens of width {width}")
    return rows.view(n, width)
