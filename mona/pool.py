"""The canonical table of one dataset: its distinct conversations and where each came from.

Reading files is `mona.containers`, reading rows is `mona.formats`; here rows become one
Parquet file with one line per distinct conversation, and one for the rows that were refused.
Texts pass through a batch at a time; ids and origins (about 200 bytes a row) are held while
duplicates are merged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mona.containers import BadRow, EmptyFileError, RawRow, read_rows
from mona.errors import RequestError, WorkError
from mona.files import DataFile
from mona.formats import (
    COLUMNS_ADVICE,
    UNKNOWN_FIELDS,
    FormatError,
    Reading,
    header_of,
    read,
)
from mona.sample import Message, from_records, sample_id, to_records
from mona.spec import Source, Subsample

# `learn` is null but for turns that carry no loss.
_MESSAGES = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("learn", pa.bool_())])
)
_ORIGIN = [
    ("source", pa.string()),
    ("licence", pa.string()),
    ("file", pa.string()),
    ("line", pa.int64()),
]
# `origins` are distinct and sorted; `source` in them is the provenance label.
POOL_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("messages", _MESSAGES),
        pa.field("origins", pa.list_(pa.struct(_ORIGIN))),
        pa.field("n_chars", pa.int64()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("source", pa.string()),
    ]
)
_ROWS_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("messages", _MESSAGES), ("n_chars", pa.int64()), *_ORIGIN]
)
_BATCH_ROWS = 4096
_BATCH_CHARS = 16_000_000

CountTokens = Callable[[list[tuple[Message, ...]]], list[int]]


@dataclass(frozen=True, slots=True)
class NamedRows:
    """Rows that come from no file, such as a hub's; `name` stands for it in provenance."""

    name: str
    rows: Iterable[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PoolSource:
    """A source as configured, and what it was resolved to."""

    source: Source
    inputs: Sequence[DataFile | NamedRows]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What may not be in a pool: samples by id, and sources by name or label."""

    ids: frozenset[str] = frozenset()
    sources: tuple[str, ...] = ()

    def covers(self, label: str) -> bool:
        """Whether a provenance label (NAME, or NAME/folder) is of a withdrawn source."""
        return any(label == name or label.startswith(f"{name}/") for name in self.sources)


@dataclass(frozen=True, slots=True)
class PoolResult:
    """Where a pool was written, and its accounts.

    rows_read = distinct + duplicates_merged + rows_bad + rows_left_out + rows_withdrawn, where
    rows_left_out are the answers of preference data that were not preferred; samples =
    distinct unless subsampled. `by_source` counts a sample under each label it came from.
    Files of a withdrawn source are not read at all. reasons: bad rows by reason, details (what
    stands behind a colon) left out; unread: by source, how many rows have text in which field
    that nothing reads; faults: what would refuse the pool, where it was not to be refused.
    """

    parquet: Path
    quarantine: Path
    digest: str
    rows_read: int
    rows_bad: int
    rows_left_out: int
    rows_withdrawn: int
    duplicates_merged: int
    distinct: int
    samples: int
    characters: int
    by_source: dict[str, int]
    reasons: dict[str, int]
    unread: dict[str, dict[str, int]]
    faults: tuple[str, ...] = ()

    def accounts(self) -> dict[str, Any]:
        """What became of the rows read, for provenance and for `account`."""
        return {
            "rows": self.samples,
            "rows read": self.rows_read,
            "set aside": self.rows_bad,
            "reasons": self.reasons,
            "merged": self.duplicates_merged,
            "not preferred": self.rows_left_out,
            "withdrawn": self.rows_withdrawn,
            "not drawn": self.distinct - self.samples,
            "unread fields": self.unread,
        }


def account(dataset: str, accounts: Mapping[str, Any]) -> str:
    """One line for a person: what became of the rows of a dataset, from a pool's accounts."""
    parts = []
    for what in ("set aside", "merged", "not preferred", "withdrawn", "not drawn"):
        if accounts.get(what):
            parts.append(f"{accounts[what]:,} {what}")
            if what == "set aside":
                most = sorted(accounts["reasons"].items(), key=lambda item: (-item[1], item[0]))
                shown = "; ".join(f"{count:,} {reason}" for reason, count in most[:3])
                parts[-1] += f" ({shown}{'; ...' if len(most) > 3 else ''})"
    line = f"{dataset}: {accounts['rows']:,} samples of {accounts['rows read']:,} rows"
    if accounts.get("files passed over"):
        parts.append(f"{accounts['files passed over']:,} files passed over")
    unread = sorted({name for fields in accounts["unread fields"].values() for name in fields})
    if unread:
        shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        parts.append(f"nothing reads {shown}")
    return f"{line}; {', '.join(parts)}" if parts else line


def head_faults(source: PoolSource, rows: int = 20) -> list[str]:
    """Why the pool will be refused, as far as the first rows of a source's files tell: a line
    for each file that is lost or gives no row, and one where no file's first rows give any."""
    certain: list[str] = []
    doubtful: list[str] = []
    usable = False
    for part in source.inputs:
        if not isinstance(part, DataFile):
            continue
        try:
            fault, is_certain = _head_fault(part, source.source, rows)
        except RequestError as error:
            fault, is_certain = str(error), True
        usable |= fault is None
        if fault is not None:
            (certain if is_certain else doubtful).append(fault)
    if not usable and doubtful:
        certain.append(f"{doubtful[0]} (none of the first {rows} rows can be used)")
    if source.source.allow_partial:
        return [] if usable else certain[:1]
    return certain


def _head_fault(file: DataFile, source: Source, rows: int) -> tuple[str | None, bool]:
    """(why none of a file's first rows can be used, or None; whether none of the others can)."""
    first: BadRow | None = None
    is_whole = True
    with closing(read_rows(file, header_of(source.format))) as found:
        for number, raw in enumerate(found):
            if number == rows:
                is_whole = False
                break
            row = _read_row(raw, source)
            if not isinstance(row, BadRow):
                return None, False
            first = first or row
    if first is None:
        return None, False
    advice = f"; {COLUMNS_ADVICE}" if first.reason.startswith(UNKNOWN_FIELDS) else ""
    return f"{first.file}:{first.line}: {first.reason}{advice}", is_whole


def build_pool(
    sources: Sequence[PoolSource],
    staging: Path,
    *,
    max_bad_rows: float,
    withdrawn: Withdrawn = Withdrawn(),
    subsample: Subsample | None = None,
    count_tokens: CountTokens | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    refuse: bool = True,
) -> PoolResult:
    """Writes `pool.parquet` (POOL_SCHEMA) and `quarantine.parquet` into `staging`.

    Samples stand in the order of their first occurrence. What is `withdrawn` never reaches
    the disk. `progress` is told of rows read since its last call. `count_tokens` is needed
    where `subsample` has `max_tokens`; it is asked only about samples that may be drawn.

    Raises RequestError for sources without rows or with unreadable files. WorkError where the
    rest of a file is lost or a file gives no row, unless its source has `allow_partial`, where
    more than the share `max_bad_rows` of all rows is bad (`refuse` False puts these into the
    result's `faults` instead), and where no good row is left.
    """
    staging.mkdir(parents=True, exist_ok=True)
    rows_path = staging / "rows.parquet"
    pool_path, quarantine_path = staging / "pool.parquet", staging / "quarantine.parquet"
    with _Intake(rows_path, quarantine_path, withdrawn, progress) as intake:
        for source in sources:
            intake.read(source)
    faults = intake.faults(max_bad_rows)
    if faults and refuse:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise WorkError(f"{faults[0]}{more}{_advice(intake)}")
    if not intake.good and refuse:
        raise WorkError(
            f"no row can be used; {intake.read_count} were read, {intake.withdrawn} are withdrawn"
            if withdrawn.ids or withdrawn.sources
            else f"no row can be used; {intake.read_count} were read"
        )

    merged = _merge(rows_path)
    kept = merged if subsample is None else _draw(merged, rows_path, subsample, count_tokens)
    characters = _write_pool(kept, rows_path, pool_path)
    rows_path.unlink()
    by_source = (
        kept.select("row", label=pl.col("origins").list.eval(pl.element().struct.field("source")))
        .explode("label")
        .unique()
        .group_by("label")
        .len()
        .sort("label")
    )
    return PoolResult(
        parquet=pool_path,
        quarantine=quarantine_path,
        digest=pool_digest(_batches(pool_path, ["sample_id", "origins"])),
        rows_read=intake.read_count,
        rows_bad=intake.bad,
        rows_left_out=intake.read_count - intake.bad - intake.good - intake.withdrawn,
        rows_withdrawn=intake.withdrawn,
        duplicates_merged=intake.good - len(merged),
        distinct=len(merged),
        samples=len(kept),
        characters=characters,
        by_source=dict(by_source.iter_rows()),
        reasons=dict(intake.reasons),
        unread={name: dict(sorted(counts.items())) for name, counts in intake.unread.items()},
        faults=tuple(faults),
    )


def _advice(intake: _Intake) -> str:
    advice = ""
    if intake.lost:
        advice = "; mend the file, leave it out, or say 'allow_partial: true' in its source"
    if any(reason.startswith(UNKNOWN_FIELDS) for reason in intake.reasons):
        advice += f"; {COLUMNS_ADVICE}"
    return advice


# --- reading ------------------------------------------------------------------------------


class _Intake:
    """Rows of sources on their way into Parquet: good ones in batches, bad ones set aside."""

    def __init__(
        self,
        rows: Path,
        quarantine: Path,
        withdrawn: Withdrawn,
        progress: Callable[[int], None],
    ) -> None:
        self.read_count = self.good = self.bad = self.withdrawn = 0
        self.first_reasons: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.unread: dict[str, Counter[str]] = {}
        self.lost: list[str] = []
        self._withdrawn = withdrawn
        self._progress = progress
        self._reported = self._chars = 0
        self._batch: list[dict[str, Any]] = []
        self._bad_batch: list[dict[str, Any]] = []
        self._rows = pq.ParquetWriter(rows, _ROWS_SCHEMA, compression="zstd")
        self._quarantine = pq.ParquetWriter(quarantine, QUARANTINE_SCHEMA, compression="zstd")

    def __enter__(self) -> _Intake:
        return self

    def __exit__(self, failure: type[BaseException] | None, *details: object) -> None:
        if failure is None:
            self._flush()
        self._rows.close()
        self._quarantine.close()

    def read(self, source: PoolSource) -> None:
        """Every input of a source; at least one of them must have rows."""
        name = source.source.name
        if not source.inputs:
            raise RequestError(f"source '{name}': no files")
        inputs = [
            part
            for part in source.inputs
            if not self._withdrawn.covers(_label(source.source, part))
        ]
        if not inputs:
            return
        before = self.read_count
        empty: list[tuple[DataFile | NamedRows, EmptyFileError]] = []
        for part in inputs:
            try:
                self._read_part(source.source, part)
            except EmptyFileError as error:
                empty.append((part, error))
        if self.read_count == before:
            raise empty[0][1] if empty else RequestError(f"source '{name}': no rows")
        for part, _ in empty:
            row = BadRow(part.name, 0, "empty file")
            self._refuse(row, _label(source.source, part))
            self._lose(source.source, row)

    def faults(self, max_bad_rows: float) -> list[str]:
        """Why this is no pool to work with, a line each."""
        found = list(self.lost)
        if self.bad > max_bad_rows * self.read_count:
            found.append(
                f"{self.bad} of {self.read_count} rows are bad "
                f"({self.bad / self.read_count:.2%}, allowed {max_bad_rows:.2%}): "
                + "; ".join(self.first_reasons)
            )
        return found

    def _read_part(self, source: Source, part: DataFile | NamedRows) -> None:
        label = _label(source, part)
        limit = source.max_rows_per_file
        good = bad = read = 0
        first: BadRow | None = None
        unread = self.unread.setdefault(source.name, Counter())
        for row in _raw_rows(part, source):
            found = _read_row(row, source)
            if isinstance(found, BadRow):
                bad += found.rows
                first = first or found
                self._refuse(found, label)
                if found.rest_lost:
                    self._lose(source, found, f" ({read:,} rows were read)" if read else "")
            else:
                assert isinstance(row, RawRow)
                read += 1
                self.read_count += 1
                unread.update(found.unread)
                if found.conversation is not None:
                    good += 1
                    self._keep(found.conversation, row, label, source.licence)
            # A file whose rows are all bad is given up as soon as a good one would be.
            if limit is not None and (good == limit or bad >= limit > good):
                break
        if first is not None and not read and not first.rest_lost:
            self._lose(source, first, " (the file gives no row)")

    def _lose(self, source: Source, row: BadRow, more: str = "") -> None:
        if not source.allow_partial:
            place = f"{row.file}:{row.line}" if row.line else row.file
            self.lost.append(f"source '{source.name}': {place}: {row.reason}{more}")

    def _keep(self, messages: tuple[Message, ...], row: RawRow, label: str, licence: str) -> None:
        identity = sample_id(messages)
        if identity in self._withdrawn.ids:
            self.withdrawn += 1
            return
        self.good += 1
        n_chars = sum(len(message.content) for message in messages)
        self._batch.append(
            {
                "sample_id": identity,
                "messages": to_records(messages),
                "n_chars": n_chars,
                "source": label,
                "licence": licence,
                "file": row.file,
                "line": row.line,
            }
        )
        self._chars += n_chars
        if len(self._batch) >= _BATCH_ROWS or self._chars >= _BATCH_CHARS:
            self._flush()

    def _refuse(self, row: BadRow, label: str) -> None:
        self.read_count += row.rows
        self.bad += row.rows
        self.reasons[_kind(row.reason)] += row.rows
        if len(self.first_reasons) < 3:
            self.first_reasons.append(f"{row.file}:{row.line}: {row.reason}")
        self._bad_batch.append(
            {"file": row.file, "line": row.line, "reason": row.reason, "source": label}
        )
        if len(self._bad_batch) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        for writer, batch in ((self._rows, self._batch), (self._quarantine, self._bad_batch)):
            if batch:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=writer.schema))
                batch.clear()
        self._chars = 0
        self._progress(self.read_count - self._reported)
        self._reported = self.read_count


def _label(source: Source, part: DataFile | NamedRows) -> str:
    if source.label_by_folder and isinstance(part, DataFile):
        return f"{source.name}/{part.folder}"
    return source.name


def _raw_rows(part: DataFile | NamedRows, source: Source) -> Iterator[RawRow | BadRow]:
    if isinstance(part, DataFile):
        return read_rows(part, header_of(source.format))
    return (RawRow(part.name, number, row) for number, row in enumerate(part.rows, 1))


def _read_row(row: RawRow | BadRow, source: Source) -> Reading | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return read(row.data, source.format, source.preference, source.columns)
    except FormatError as error:
        return BadRow(row.file, row.line, str(error))


def _kind(reason: str) -> str:
    """A reason without what differs from row to row."""
    head, _, detail = reason.partition(": ")
    # The kind of a fault that a library words stands behind the first colon.
    kind = f"{head}: {detail.partition(' (')[0]}" if head.startswith("invalid") else head
    return re.sub(r"\[.*|\d+", "...", kind)[:80]


# --- merging ------------------------------------------------------------------------------


def _merge(rows_path: Path) -> pl.DataFrame:
    """`row` (first occurrence, ascending), `sample_id`, `origins` of each conversation."""
    return (
        pl.scan_parquet(rows_path, row_index_name="row")
        .select("row", "sample_id", origins=pl.struct("source", "licence", "file", "line"))
        .group_by("sample_id")
        .agg(pl.col("row").min(), pl.col("origins").unique().sort())
        .sort("row")
        .collect(engine="streaming")
    )


def _row_groups(
    rows_path: Path, rows: np.ndarray, columns: list[str]
) -> Iterator[tuple[slice, pa.Table]]:
    """The given rows (ascending positions in the file), a row group at a time.

    Yields which of `rows` a table holds, with the table.
    """
    with pq.ParquetFile(rows_path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(rows, [start, end])
            if low < high:
                table = file.read_row_group(group, columns=columns)
                yield slice(low, high), table.take(pa.array(rows[low:high] - start))
            start = end


def _write_pool(kept: pl.DataFrame, rows_path: Path, pool_path: Path) -> int:
    """Joins texts and origins; returns the number of characters written."""
    rows = kept["row"].to_numpy().astype(np.int64)
    characters = 0
    with pq.ParquetWriter(pool_path, POOL_SCHEMA, compression="zstd") as writer:
        columns = ["sample_id", "messages", "n_chars"]
        for part, table in _row_groups(rows_path, rows, columns):
            origins = kept["origins"][part].to_arrow(compat_level=pl.CompatLevel.oldest())
            table = table.append_column("origins", origins)
            writer.write_table(table.select(POOL_SCHEMA.names).cast(POOL_SCHEMA))
            characters += int(np.sum(table.column("n_chars").to_numpy()))
    return characters


# --- subsampling --------------------------------------------------------------------------


def _draw(
    merged: pl.DataFrame,
    rows_path: Path,
    subsample: Subsample,
    count_tokens: CountTokens | None,
) -> pl.DataFrame:
    """The rows of `merged` that a seeded round robin over the labels draws.

    The samples of a label (a sample's first) come in the order of a keyed hash of their ids,
    so the draw does not depend on the order of the pool, and a row added to it displaces at
    most one.
    """
    keys = [
        hashlib.blake2b(f"{subsample.seed}:{identity}".encode(), digest_size=16).hexdigest()
        for identity in merged["sample_id"]
    ]
    candidates = merged.select(
        "row", label=pl.col("origins").list.first().struct.field("source"), key=pl.Series(keys)
    ).sort("label", "key")
    if subsample.max_chars is not None:
        lengths = pl.scan_parquet(rows_path, row_index_name="row").select("row", "n_chars")
        short = lengths.filter(pl.col("n_chars") <= subsample.max_chars).select("row").collect()
        candidates = candidates.join(short, on="row", how="semi", maintain_order="left")
        if candidates.is_empty():
            raise WorkError(f"no sample has at most {subsample.max_chars} characters")
    if subsample.max_tokens is None:
        drawn = _round_robin(candidates, subsample.rows)
    else:
        if count_tokens is None:
            raise ValueError("a subsample with max_tokens needs count_tokens")
        # Counting is costly: draw as if all fitted, count what was drawn, and draw again
        # without what does not fit, until a draw holds nothing uncounted.
        counted: set[int] = set()
        while True:
            drawn = _round_robin(candidates, subsample.rows)
            uncounted = sorted(set(drawn["row"]) - counted)
            if not uncounted:
                break
            counted.update(uncounted)
            too_long = []
            for part, table in _row_groups(rows_path, np.array(uncounted), ["messages"]):
                texts = [from_records(records) for records in table.column("messages").to_pylist()]
                counts = count_tokens(texts)
                pairs = zip(uncounted[part], counts, strict=True)
                too_long += [row for row, count in pairs if count > subsample.max_tokens]
            candidates = candidates.filter(~pl.col("row").is_in(too_long))
    if drawn.is_empty():
        raise WorkError(f"no sample has at most {subsample.max_tokens} tokens")
    return merged.join(drawn.select("row"), on="row", how="semi", maintain_order="left")


def _round_robin(candidates: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first of each label, then the second of each, and so on."""
    return (
        candidates.with_columns(turn=pl.int_range(pl.len()).over("label"))
        .sort("turn", "label")
        .head(count)
    )


# --- digest -------------------------------------------------------------------------------


def row_digest(identity: str, origins: Iterable[dict[str, Any]]) -> bytes:
    """SHA-256 of a sample's id and its distinct (label, licence) pairs; 32 bytes.

    File and line are left out: the same rows in other files are the same pool.
    """
    pairs = sorted({(origin["source"], origin["licence"]) for origin in origins})
    content = json.dumps([identity, pairs], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8")).digest()


def _batches(parquet: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(parquet) as file:
        yield from file.iter_batches(_BATCH_ROWS, columns=columns)


def pool_digest(batches: Iterable[pa.RecordBatch], removed: Iterable[bytes] = ()) -> str:
    """The data version of a pool: SHA-256 over its sorted row digests, hex. Batches hold the
    columns sample_id and origins; `removed` are the digests of rows that were in it."""
    digests: list[bytes] = list(removed)
    for batch in batches:
        identities = batch.column("sample_id").to_pylist()
        digests += map(row_digest, identities, batch.column("origins").to_pylist())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
