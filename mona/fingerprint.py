"""Names for content: what a set of rows or settings hashes to. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

FINGERPRINT_LENGTH = 16


def fingerprint(**parts: Any) -> str:
    """The first 64 bits of SHA-256 over the named parts as canonical JSON, in hex."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:FINGERPRINT_LENGTH]


def rows_digest(ids: Iterable[str]) -> str:
    """SHA-256 over the sorted ids: the same rows in any order have the same digest."""
    digest = hashlib.sha256()
    for sample_id in sorted(ids):
        digest.update(sample_id.encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
