"""When Dagster's daemon brings a derived asset up to date by itself.

`eager()` re-runs on any upstream materialisation, the same data included, and ignores
code_version. The condition here re-runs only what changed.
"""

from __future__ import annotations

import dagster as dg


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


def with_automation(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """The asset with the condition on each of its keys."""
    return asset.map_asset_specs(
        lambda spec: spec.replace_attributes(automation_condition=changed_inputs())
    )
