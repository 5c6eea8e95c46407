"""The tables that encodings fill: their names and schemas, a population at a time.

`activations` has one row a sample and encoder fingerprint: what the forward pass counted, and
the token activations themselves where the disk budget allows. Each dense view a recipe reads is
a table of its own beside it, and so are the codes of each model and codes fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from mona import method
from mona.fingerprint import fingerprint

KEY = {b"lance-schema:unenforced-primary-key": b"true"}
KEY_FIELD = pa.field("sample_id", pa.string(), nullable=False, metadata=KEY)


@dataclass(frozen=True, slots=True)
class Population:
    """Whose encodings: the samples of a pool (kind ''), or a target's examples ('example_')."""

    kind: str
    name: str

    def activations_table(self, encoder_fingerprint: str) -> str:
        """Shared by all models whose entries mean the same encoder."""
        return f"{self.kind}activations.{self.name}.{encoder_fingerprint}"

    def view_table(self, view: str, encoder_fingerprint: str) -> str:
        """One dense view under the version it is computed by now, shared likewise."""
        meaning = fingerprint(encoder=encoder_fingerprint, version=method.VIEWS[view])
        return f"{self.kind}{view}.{self.name}.{meaning}"

    def codes_table(self, model: str, codes_fingerprint: str) -> str:
        """One model's codes under one fingerprint."""
        return f"{self.kind}codes.{self.name}.{model}.{codes_fingerprint}"


def pool_population(dataset: str) -> Population:
    """The samples of a dataset's pool."""
    return Population("", dataset)


def examples_population(target: str) -> Population:
    """The representative examples of a target."""
    return Population("example_", target)


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


def activations_schema(fingerprint: str, width: int, dtype: str) -> pa.Schema:
    """One row a sample: counted tokens, untruncated length, the mean norm of its tokens, why it
    was set aside (null: it was not), and the counted tokens' residual streams as raw bytes of
    `dtype` [n_tokens, width], null where they are not `cached`."""
    return pa.schema(
        [
            KEY_FIELD,
            pa.field("n_tokens", pa.int32()),
            pa.field("length", pa.int32()),
            pa.field("norm", pa.float32()),
            pa.field("set_aside", pa.string()),
            pa.field("cached", pa.bool_()),
            pa.field("tokens", pa.large_binary()),
        ],
        metadata={
            b"fingerprint": fingerprint.encode(),
            b"width": str(width).encode(),
            b"dtype": dtype.encode(),
        },
    )


def view_schema(fingerprint: str, width: int) -> pa.Schema:
    """One row a sample: untruncated length in tokens, and the view's float16 values [width]."""
    return pa.schema(
        [
            KEY_FIELD,
            pa.field("length", pa.int32()),
            pa.field("values", pa.list_(pa.float16(), width)),
        ],
        metadata={b"fingerprint": fingerprint.encode()},
    )
