"""What is fresh, stale or missing, partition by partition, and the order that mends it.

Freshness is Dagster's own resolver, so this and the UI agree; on top of it a partition whose
upstream is about to be made again is shown as waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from assets.keys import (
    ACTIVATIONS,
    CONTROLS,
    RAW_POOL,
    SAE,
    SAE_CODES,
    Partitions,
    both,
    evaluation,
    evaluations,
    examples,
    finetune,
    label,
    leaderboard,
    prototype,
    selection,
    subsets,
)
from mona.errors import RequestError
from mona.names import nearest
from orchestration.config import Config
from orchestration.damage import lost_tables
from orchestration.limits import fault, is_current, last_evaluation, moved_limits
from orchestration.taints import taints
from resources.asset_partition import AssetPartition
from resources.records import Records
from resources.store import Store

UPTO = (
    "raw_pool",
    "sae",
    "activations",
    "sae_codes",
    "examples",
    "prototype",
    "selection",
    "finetune",
    "evaluation",
    "leaderboard",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The part of the graph a command is about; empty means all of it."""

    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    upto: str = "leaderboard"

    def checked(self, config: Config) -> Choice:
        """The choice with empty parts filled in. RequestError for a name that is not there."""
        if self.upto not in UPTO:
            near = nearest(self.upto, UPTO)
            raise RequestError(f"--upto {self.upto}: one of {', '.join(UPTO)}{near}")

        def filled(kind: str, wanted: tuple[str, ...], known: Iterable[str]) -> tuple[str, ...]:
            for name in wanted:
                if name not in known:
                    near = nearest(name, known)
                    raise RequestError(f"no {kind} is called '{name}' in {config.path}{near}")
            return wanted or tuple(known)

        return Choice(
            filled("dataset", self.datasets, config.datasets),
            filled("model", self.models, config.models),
            filled("target", self.targets, config.targets),
            filled("recipe", self.recipes, config.recipes),
            self.upto,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One Dagster run: asset keys made together for one partition."""

    keys: tuple[dg.AssetKey, ...]
    partition: str | None


@dataclass(frozen=True, slots=True)
class State:
    """One asset partition as it stands: status is fresh, stale, missing, waiting (for what is
    above it), failed (a blocking check) or blocked (by a failed check above it)."""

    key: dg.AssetKey
    partition: str | None
    status: str
    why: str = ""


def steps(config: Config, choice: Choice) -> list[Step]:
    """The chosen part in an order in which every step finds its inputs made."""
    chosen = choice.checked(config)
    depth = UPTO.index(chosen.upto)
    # An SAE reads the pools it trains on, which have no edge to it in Dagster.
    read = dict.fromkeys(
        [
            *chosen.datasets,
            *(d for model in chosen.models for d in config.models[model].sae.sample_datasets),
        ]
    )
    planned = [Step((RAW_POOL,), dataset) for dataset in read]
    if depth >= UPTO.index("examples"):
        # Before any model runs: a target that can't be read is known after seconds.
        planned += [Step((examples(target),), None) for target in chosen.targets]
    if depth >= 1 and chosen.upto != "examples":
        planned += [Step((SAE,), model) for model in chosen.models]
    multi = [both(dataset, model) for model in chosen.models for dataset in chosen.datasets]
    if depth >= UPTO.index("selection") or chosen.upto in ("activations", "sae_codes"):
        keys = (ACTIVATIONS,) if chosen.upto == "activations" else (ACTIVATIONS, SAE_CODES)
        planned += [Step(keys, key) for key in multi]
    if depth >= UPTO.index("prototype"):
        planned += [
            Step((prototype(target),), model)
            for model in chosen.models
            for target in chosen.targets
        ]
    if depth >= UPTO.index("selection"):
        recipes = {name: config.recipes[name] for name in chosen.recipes}
        made = subsets(chosen.targets, recipes)
        own = tuple(selection(*pair) for pair in made if pair[0] != CONTROLS)
        shared = [selection(*pair) for pair in made if pair[0] == CONTROLS]
        planned += [Step(own, key) for key in multi if own]
        planned += [Step((control,), key) for key in multi for control in shared]
    if depth >= UPTO.index("finetune"):
        tuned = [pair for pair in made if config.recipes[pair[1]].finetune is not None]
        planned += [Step((finetune(*pair),), key) for key in multi for pair in tuned]
    if depth >= UPTO.index("evaluation"):
        planned += [
            Step((evaluation(target, recipe),), key)
            for key in multi
            for target, recipe in evaluations(config.targets, config.recipes)
            if target in chosen.targets and recipe in chosen.recipes
        ]
    if depth >= UPTO.index("leaderboard"):
        ranked = dict.fromkeys(target for target, _ in evaluations(config.targets, config.recipes))
        # A part of the recipes can't be ranked: the others' figures may be missing.
        planned += [
            Step((leaderboard(target),), key)
            for key in multi
            for target in ranked
            if target in chosen.targets and set(chosen.recipes) == set(config.recipes)
        ]
    return planned


@dataclass
class Standing:
    """Freshness of asset partitions, read once from an instance; what a withdrawal tainted is
    stale too."""

    instance: dg.DagsterInstance
    graph: BaseAssetGraph[Any]
    config: Config
    records: Records = field(init=False)
    _states: dict[tuple[dg.AssetKey, str | None], State] = field(default_factory=dict)
    _faults: dict[tuple[dg.AssetKey, str | None], str | None] = field(default_factory=dict)
    _tables_of: dict[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records = Records(home=str(self.config.home))
        self.forget()

    def forget(self) -> None:
        """Drops what was read: after a run it is out of date."""
        self._states.clear()
        self._faults.clear()
        store = Store(root=self.config.store_root, home=self.records.home)
        self._tainted = taints(self.records)
        self._reclaimed = self.records.retired()
        self._lost = lost_tables(self.records, store, self._tables_of)
        self._resolver = CachingStaleStatusResolver(
            self.instance, self.graph, LoadingContextForTest(self.instance)
        )

    def state(self, key: dg.AssetKey, partition: str | None) -> State:
        """One partition's state, its upstream's included."""
        if (key, partition) not in self._states:
            self._states[key, partition] = self._read(key, partition)
        return self._states[key, partition]

    def _read(self, key: dg.AssetKey, partition: str | None) -> State:
        status = self._resolver.get_status(key, partition)
        if status == StaleStatus.MISSING:
            return State(key, partition, "missing", "never made")
        if label(key, partition) in self._reclaimed:
            # Its entry was away and is back: Dagster's history has it, the store has not.
            return State(key, partition, "missing", "reclaimed by mona gc")
        if label(key, partition) in self._lost:
            lost = self._lost[label(key, partition)]
            return State(key, partition, "missing", f"its table {lost} is gone")
        if status == StaleStatus.STALE:
            causes = self._resolver.get_stale_causes(key, partition)
            return State(key, partition, "stale", "; ".join(dict.fromkeys(map(_why, causes))))
        above = [self.state(*parent) for parent in self.parents(key, partition)]
        for parent in above:
            if parent.status in ("stale", "missing", "waiting"):
                shown = label(parent.key, parent.partition)
                return State(key, partition, "waiting", f"upstream {shown} is {parent.status}")
        if label(key, partition) in self._tainted:
            # What was chosen or learned may come out the same without the withdrawn row: then no
            # version changes, and yet the record must not stand on it.
            return State(key, partition, "stale", "stands on a withdrawn row")
        failure = self.fault(key, partition)
        if failure is not None:
            return State(key, partition, "failed", failure)
        for parent in above:
            if parent.status in ("failed", "blocked"):
                shown = label(parent.key, parent.partition)
                verb = "failed a check" if parent.status == "failed" else "is blocked"
                return State(key, partition, "blocked", f"upstream {shown} {verb}")
        return State(key, partition, "fresh")

    def parents(
        self, key: dg.AssetKey, partition: str | None, *, with_entries: bool = False
    ) -> Iterator[tuple[dg.AssetKey, str | None]]:
        """(asset, partition) of what a partition reads; observed entries where asked for."""
        for parent in sorted(self.graph.get(key).parent_keys):
            node = self.graph.get(parent)
            if node.is_external and not with_entries:
                continue
            if node.partitions_def is None:
                yield parent, None
            elif partition is None or node.partitions_def == self.graph.get(key).partitions_def:
                yield parent, partition
            else:
                of = AssetPartition.of(key.path, partition)
                datasets = Partitions(self.config.datasets, self.config.models).dataset
                yield parent, of.dataset if node.partitions_def == datasets else of.model

    def unready(self, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether something directly above is itself to be made first."""
        above = (self.state(*it).status for it in self.above(key, partition))
        return any(status in ("missing", "stale", "waiting") for status in above)

    def above(
        self, key: dg.AssetKey, partition: str | None, *, with_entries: bool = False
    ) -> list[tuple[dg.AssetKey, str | None]]:
        """The `parents` of a partition, and the pools that an SAE trains on, from which it has no
        edge."""
        found = list(self.parents(key, partition, with_entries=with_entries))
        if key == SAE and partition is not None:
            found += [(RAW_POOL, d) for d in self.config.models[partition].sae.sample_datasets]
        return found

    def failed_check(self, key: dg.AssetKey, partition: str | None) -> str | None:
        """What the first failed blocking check directly above this partition found.

        Separate runs don't inherit a blocking check, so the planner looks itself.
        """
        for parent, parent_partition in self.parents(key, partition):
            found = self.fault(parent, parent_partition)
            if found is not None:
                return f"{label(parent, parent_partition)}: {found}"
        return None

    def fault(self, key: dg.AssetKey, partition: str | None) -> str | None:
        """What the first failed blocking check of this partition found, judged by the limits of
        now."""
        if (key, partition) not in self._faults:
            self._faults[key, partition] = next(self._failures(key, partition), None)
        return self._faults[key, partition]

    def _failures(self, key: dg.AssetKey, partition: str | None) -> Iterator[str]:
        for check in self.checks(key):
            evaluation = last_evaluation(self.instance, check, partition)
            said = evaluation and fault(check, partition, evaluation, self.config)
            if said and (partition is None or is_current(self.instance, check, partition)):
                yield f"check {check.name} failed: {said}"

    def checks(self, key: dg.AssetKey) -> list[dg.AssetCheckKey]:
        """The blocking checks of an asset."""
        found = (check for check in self.graph.asset_check_keys if check.asset_key == key)
        return sorted((check for check in found if self.graph.get(check).blocking), key=str)

    def due_checks(self, key: dg.AssetKey, partition: str | None) -> list[dg.AssetCheckKey]:
        """The blocking checks of a partition that was made, all of them, when one was not run to
        its end on what it holds now or was judged by another limit."""
        known = self.checks(key)
        if partition is None or all(is_current(self.instance, check, partition) for check in known):
            moved = key == SAE and partition in moved_limits(self.config, self.instance)
            return known if moved else []
        return known


def _why(cause: object) -> str:
    dependency = getattr(cause, "dependency", None)
    if dependency is None:
        return str(getattr(cause, "reason", cause))
    return f"{label(dependency.asset_key, dependency.partition_key)} changed"


def states(standing: Standing, planned: Iterable[Step]) -> list[State]:
    """The state of every partition of a plan, in its order."""
    return [standing.state(key, step.partition) for step in planned for key in step.keys]
