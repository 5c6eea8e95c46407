"""When Dagster's daemon brings a derived asset up to date by itself.

`eager()` re-runs on any upstream materialisation, the same data included, and ignores
code_version. The condition here re-runs only what changed.
"""

from __future__ import annotations

import dagster as dg

from orchestration.config import Config


def changed_inputs() -> dg.AutomationCondition[dg.AssetKey]:
    """True when something this partition depends on has really changed and can be used.

    - data_version_changed of any dependency: new content, not merely a new run;
    - or code_version_changed: a recipe or target was edited;
    - or newly_missing: the partition is new;
    - unless it or a dependency is being made, or a dependency is missing;
    - and only when every blocking check upstream passed.
    The first three are not latched with since_last_handled: a change between the request
    and its tick would be lost.
    """
    condition = dg.AutomationCondition
    changed = (
        condition.any_deps_updated().replace("newly_updated", condition.data_version_changed())
        | condition.code_version_changed()
        | condition.newly_missing()
    )
    ready = (
        ~condition.in_progress()
        & ~condition.any_deps_in_progress()
        & (~condition.any_deps_missing())
    )
    return (changed & ready & condition.all_deps_blocking_checks_passed()).with_label(
        "inputs changed"
    )


def follows(key: dg.AssetKey, config: Config) -> bool:
    """Whether an asset follows its inputs without a hand: training and measuring a model do
    only where the recipe says `auto`."""
    if key.path[-1] not in ("finetune", "evaluation"):
        return True
    settings = config.recipes[key.path[1]].finetune
    return settings is not None and settings.auto


def with_automation(asset: dg.AssetsDefinition, config: Config) -> dg.AssetsDefinition:
    """The asset with the condition on each of its keys that follows."""
    return asset.map_asset_specs(
        lambda spec: (
            spec.replace_attributes(automation_condition=changed_inputs())
            if follows(spec.key, config)
            else spec
        )
    )


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
