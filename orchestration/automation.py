"""When Dagster's daemon brings a derived asset up to date by itself.

`eager()` re-runs on any upstream materialisation, the same data included, and ignores
code_version. The condition here re-runs only what changed. It asks once for a change: what
failed, and what a tick missed, is asked for again by `orchestration.refresh`.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from assets.keys import SAE
from orchestration.config import Config
from resources.asset_partition import AssetPartition


def changed_inputs(same_run: dg.AssetSelection) -> dg.AutomationCondition[dg.AssetKey]:
    """True when something this partition depends on has really changed and can be used.

    - data_version_changed of any dependency: new content, not merely a new run;
    - or code_version_changed: a recipe or target was edited;
    - or missing, unless the last run that was to make it failed: without `missing`, a partition
      that could not be made on its first tick would never be; without the exception, one that
      fails would be asked for without pause or end;
    - unless it or a dependency is being made;
    - unless a dependency is missing or about to be made. Those of `same_run` may be: they have its
      partitions, and are then made before it in one run. Any other is made in a run of its own,
      and a run that reads it must not start beside that;
    - and only when every blocking check upstream passed.
    The first two are not latched with since_last_handled: a change between the request
    and its tick would be lost.
    """
    condition = dg.AutomationCondition
    changed = (
        condition.any_deps_updated().replace("newly_updated", condition.data_version_changed())
        | condition.code_version_changed()
        | (condition.missing() & ~condition.execution_failed())
    )
    unmade = condition.missing() | condition.will_be_requested()
    ready = (
        ~condition.in_progress()
        & ~condition.any_deps_in_progress()
        & ~condition.any_deps_missing()
        & ~condition.any_deps_match(unmade).ignore(same_run)
    )
    return (changed & ready & condition.all_deps_blocking_checks_passed()).with_label(
        "inputs changed"
    )


def changed_entry(same_run: dg.AssetSelection) -> dg.AutomationCondition[dg.AssetKey]:
    """The condition of `sae`, which has no edge from the pools it trains on: one that is missing
    would be asked for before them. `orchestration.refresh` knows them and asks for it."""
    made = ~dg.AutomationCondition.missing()
    return (changed_inputs(same_run) & made).with_label("entry changed")


def follows(key: dg.AssetKey, config: Config) -> bool:
    """Whether an asset follows its inputs without a hand: training and measuring a model do
    only where the recipe says `auto`."""
    of = AssetPartition.of(key.path)
    if of.kind not in ("finetune", "evaluation"):
        return True
    settings = config.recipes[of.subset[1]].finetune
    return settings is not None and settings.auto


def with_automation(
    assets: Sequence[dg.AssetsDefinition], config: Config
) -> list[dg.AssetsDefinition]:
    """The assets with the condition on each of their keys that follows."""

    def condition(spec: dg.AssetSpec) -> dg.AutomationCondition[dg.AssetKey]:
        same = [
            key
            for asset in assets
            for key in asset.keys
            if asset.specs_by_key[key].partitions_def == spec.partitions_def
        ]
        build = changed_entry if spec.key == SAE else changed_inputs
        return build(dg.AssetSelection.assets(*same))

    return [
        asset.map_asset_specs(
            lambda spec: (
                spec.replace_attributes(automation_condition=condition(spec))
                if follows(spec.key, config)
                else spec
            )
        )
        for asset in assets
    ]


def build_condition_sensor(config: Config) -> dg.AutomationConditionSensorDefinition:
    """What evaluates the conditions; runs from the start where `follow_changes` says so, and
    can be switched in the UI."""
    return dg.AutomationConditionSensorDefinition(
        "follow_changes",
        target=dg.AssetSelection.all(include_sources=True) | dg.AssetSelection.all_asset_checks(),
        default_status=dg.DefaultSensorStatus.RUNNING
        if config.automation.follow_changes
        else dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=15,
        description="Brings derived partitions up to date when their inputs have changed.",
    )
