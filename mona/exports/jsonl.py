"""jsonl: one object a line, `messages` beside the lineage columns. A turn that is not to be learned
has a `weight` of 0.
"""

from __future__ import annotations

from mona.exports.base import (
    ExportFormat,
    as_messages,
)

KIND = ExportFormat(as_messages, "jsonl")
