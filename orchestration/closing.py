"""What a run is asked about when it ends: where the subsets are, how the measured models stand,
what to do next. Reads records and Dagster's history, changes nothing."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.keys import both, evaluations, label, leaderboard, selection, subsets
from mona.pool import account
from orchestration.config import Config
from resources.asset_partition import AssetPartition
from resources.records import Records
from resources.store import Store


@dataclass(frozen=True, slots=True)
class Board:
    """One target's leaderboard: `tables` has a list of rows, best first, for each metric."""

    target: str
    dataset: str
    model: str
    tables: dict[str, list[dict[str, Any]]]


def made_subsets(config: Config, records: Records, store: Store) -> list[dict[str, Any]]:
    """A row a subset that was made: subset, dataset, model, samples, best and last score, table."""
    rows = []
    for owner, recipe in subsets(config.targets, config.recipes):
        for dataset in config.datasets:
            for model in config.models:
                digest = records.current(label(selection(owner, recipe), both(dataset, model)))
                if digest is None:
                    continue
                ((name, seal),) = records.get(digest).tables.items()
                scores = store.read(name, ["score"], version=seal.version).column("score")
                known = [score for score in scores.to_pylist() if score is not None]
                rows.append(
                    {
                        "subset": f"{owner}/{recipe}",
                        "dataset": dataset,
                        "model": model,
                        "samples": seal.rows,
                        "best": round(known[0], 4) if known else None,
                        "last": round(known[-1], 4) if known else None,
                        "table": name,
                    }
                )
    return rows


def pool_accounts(records: Records, made: list[str]) -> list[str]:
    """A line for each pool among the asset partitions just made: what became of its rows."""
    return [account(str(asset.dataset), about) for asset, about in _of("raw_pool", records, made)]


def encoding_accounts(records: Records, made: list[str]) -> list[str]:
    """A line for each encoding just made that set samples aside."""
    lines = []
    for asset, about in _of("activations", records, made):
        if aside := about.get("set aside", 0):
            dataset, model = asset.pair
            lines.append(
                f"{dataset}: {aside:,} samples are set aside, which the template of '{model}' "
                f"can't render truly: mona pool show {dataset} --set-aside"
            )
    return lines


def _of(
    kind: str, records: Records, made: list[str]
) -> Iterator[tuple[AssetPartition, dict[str, Any]]]:
    """The asset partitions of a kind among those just made, and what their records say."""
    for asset in map(AssetPartition.parse, made):
        digest = records.current(str(asset)) if asset.kind == kind else None
        if digest is not None:
            yield asset, records.get(digest).about


def boards(config: Config, instance: dg.DagsterInstance, target: str | None = None) -> list[Board]:
    """The leaderboards that were made, of one target or of all."""
    found = []
    ranked = dict.fromkeys(name for name, _ in evaluations(config.targets, config.recipes))
    for name in ranked:
        if target not in (None, name):
            continue
        for dataset in config.datasets:
            for model in config.models:
                partition = both(dataset, model)
                events = instance.fetch_materializations(
                    dg.AssetRecordsFilter(leaderboard(name), asset_partitions=[partition]), limit=1
                )
                for event in events.records:
                    made = event.asset_materialization
                    if made is not None:
                        found.append(Board(name, dataset, model, _tables(made)))
    return found


def _tables(made: dg.AssetMaterialization) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [
            # Dagster's history sorts a record's keys; the table's own order is in its schema.
            {column.name: record.data.get(column.name) for column in value.schema.columns}
            for record in value.value.records
        ]
        for name, value in made.metadata.items()
        if isinstance(value, dg.TableMetadataValue)
    }


def next_commands(config: Config, made: list[dict[str, Any]], with_boards: bool) -> list[str]:
    """Commands to paste, as this one was called."""
    program = _program()
    found = []
    if made:
        first = made[0]
        which = f" --dataset {first['dataset']}" if len(config.datasets) > 1 else ""
        which += f" --model {first['model']}" if len(config.models) > 1 else ""
        subset = f"{first['subset']}{which}"
        found += [
            f"{program} select show {subset}",
            f"{program} export {subset} --format jsonl --out subset.jsonl",
        ]
    else:
        found.append(f"{program} run")
    if with_boards:
        found.append(f"{program} leaderboard")
    found.append(f"{program} ui")
    told = f" --config {shlex.quote(_short(config.path))}"
    return [f"{command}{told}" for command in found]


def _program() -> str:
    """How this program was called, where that works again from the same folder."""
    called = Path(sys.argv[0])
    if called.name == "mona":
        found = shutil.which("mona")
        same = found is not None and Path(found).resolve() == called.resolve()
        return "mona" if same else shlex.quote(_short(called.absolute()))
    return "mona"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
