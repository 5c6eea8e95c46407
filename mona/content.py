"""The digest of tabular content: what rows say, however they are stored or batched.

A digest here survives compaction, re-batching and re-encoding of a table, and changes with
any value, null or order of rows. Digests of stored bytes are `resources.records`' business.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class ContentDigest:
    """SHA-256 over the values of record batches, column by column.

    Every column is a few streams of bytes (validity, lengths, values), each hashed on its own
    as batches come, so batch boundaries leave no trace.
    """

    def __init__(self) -> None:
        self._streams: dict[str, hashlib._Hash] = {}
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """The next rows. Shape: any columns of numbers, booleans, texts, bytes, lists and
        structs of these; TypeError for another type."""
        self.rows += batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._column(name, column)

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        whole = hashlib.sha256(f"{self.rows}\n".encode())
        for path, stream in sorted(self._streams.items()):
            whole.update(f"{path}\t{stream.hexdigest()}\n".encode())
        return whole.hexdigest()

    def _feed(self, path: str, values: bytes | memoryview) -> None:
        self._streams.setdefault(path, hashlib.sha256()).update(values)

    def _column(self, path: str, column: pa.Array) -> None:
        kind = column.type
        # A byte a value: packed bits would show where a batch ended.
        self._feed(f"{path}?", _valid(column).astype(np.uint8).tobytes())
        column = column.drop_null()
        if pa.types.is_struct(kind):
            for field, child in zip(kind, column.flatten(), strict=True):
                self._column(f"{path}.{field.name}", child)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            self._lengths(path, pc.list_value_length(column))
            self._column(f"{path}[]", column.flatten())
        elif pa.types.is_fixed_size_list(kind):
            self._column(f"{path}[]", column.flatten())
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self._lengths(path, pc.binary_length(column))
            self._feed(path, "".join(column.to_pylist()).encode())
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            self._lengths(path, pc.binary_length(column))
            for value in column:
                self._feed(path, value.as_buffer())
        elif pa.types.is_boolean(kind):
            self._feed(path, column.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
        elif pa.types.is_primitive(kind):
            self._feed(path, column.to_numpy(zero_copy_only=False).tobytes())
        elif not pa.types.is_null(kind):
            raise TypeError(f"column {path}: no digest of a {kind}")

    def _lengths(self, path: str, lengths: pa.Array) -> None:
        self._feed(f"{path}#", lengths.cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())


def _valid(column: pa.Array) -> np.ndarray:
    return column.is_valid().to_numpy(zero_copy_only=False)
