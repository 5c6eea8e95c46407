"""Lineage past the number of upstream partitions where Dagster's own provenance degrades."""

from __future__ import annotations

import hashlib

import pytest

from assets.keys import label, selection
from orchestration.definitions import build_resources
from orchestration.lineage import chain
from tests.orchestration.conftest import (  # noqa: F401
    Project,
    findings,
    project,
    sums,
)

pytestmark = pytest.mark.acceptance
DATASETS = 105


def test_lineage_is_right_with_more_than_a_hundred_pools(project: Project) -> None:  # noqa: F811
    names = [f"part{i}" for i in range(DATASETS)]
    for i, name in enumerate(names):
        project.write_rows(name, sums(20 * i, 6))
    project.settings["datasets"] = {
        name: {"sources": [{"name": name, "path": f"{name}.jsonl", "licence": "CC0-1.0"}]}
        for name in names
    }
    project.settings["models"]["tiny"]["sae"]["train"]["datasets"] = names
    project.settings["recipes"]["mona"]["budget"] = {"count": 3}

    def digests() -> dict[str, str]:
        return {
            name: hashlib.sha256((project.root / f"{name}.jsonl").read_bytes()).hexdigest()
            for name in names
        }

    def consumed() -> dict[str, str]:
        """Source digest of every pool in the chain above one selection."""
        records = build_resources(project.config)["records"]
        links = chain(records, label(selection("adding", "mona"), "part7|tiny"))
        pools = [link.record for link in links if link.record.asset.startswith("raw_pool[")]
        return {
            pool.asset.removeprefix("raw_pool[").removesuffix("]"): next(
                iter(pool.about["sources"].values())
            )
            for pool in pools
        }

    project.run(datasets=("part7",))
    first = digests()
    assert consumed() == first
    assert findings(project) == []
    # The newest event of any partition is another one's now; the SAE stays pinned.
    project.write_rows("part50", sums(9_000, 5))
    project.write_rows("part7", sums(8_000, 7))
    project.run(datasets=("part7", "part50"))
    # Two pools of part7 are above: the selection's own and the one the SAE was trained on.
    assert consumed()["part50"] == first["part50"]
    assert findings(project) == []
