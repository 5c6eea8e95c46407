"""The Dagster definitions that follow from a configuration.

`build_definitions(config, **resource_overrides)` is the seam for tests. Dagster finds and calls
`definitions()`, which reads the file named by MONA_CONFIG: through the clone's workspace.yaml,
through the one beside this file (`mona ui`, wherever the packages lie) or by this module's name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dagster as dg

from assets.controls import build_controls
from assets.encoding import build_encoding
from assets.entries import build_entries
from assets.evaluation import build_evaluations
from assets.finetune import build_finetunes
from assets.keys import Partitions
from assets.prototype import build_prototype
from assets.raw_pool import build_raw_pool
from assets.sae import build_sae
from assets.selection import build_selections
from assets.targets import build_examples
from orchestration.automation import build_condition_sensor, with_automation
from orchestration.checks import build_checks
from orchestration.config import Config, load_config
from orchestration.configurations import note
from orchestration.home import build_executor
from orchestration.logs import build_logger
from orchestration.notices import build_failure_sensor
from orchestration.refresh import build_follow_up_sensor, build_schedules
from orchestration.run import begin
from orchestration.sensors import build_entry_sensor, build_hub_sensor
from resources.engine import Engine
from resources.models import Models
from resources.records import Records
from resources.sources import Sources
from resources.store import Store


def build_resources(config: Config) -> dict[str, Any]:
    """The five resources of a configuration."""
    home = str(config.home)
    return {
        "sources": Sources(home=home),
        "shelf": Models(home=home, device=config.engine.device),
        "store": Store(root=config.store_root, home=home),
        "records": Records(home=home),
        "engine": Engine(**config.engine.model_dump()),
    }


def build_partitions(config: Config) -> Partitions:
    """Partition keys are the configured names, in the order of the file."""
    return Partitions(config.datasets, config.models)


def build_definitions(config: Config, **resource_overrides: Any) -> dg.Definitions:
    """Assets, checks, sensor and resources of a configuration."""
    partitions = build_partitions(config)
    made = [
        build_raw_pool(config.datasets, config.models, partitions),
        build_sae(config.models, config.recipes, partitions),
        build_encoding(config.models, config.recipes, partitions),
        *(build_examples(target, spec) for target, spec in config.targets.items()),
        *(
            build_prototype(target, spec, config.models, config.recipes, partitions)
            for target, spec in config.targets.items()
        ),
        *build_selections(list(config.targets), config.recipes, partitions),
        *build_finetunes(list(config.targets), config.recipes, config.models, partitions),
        *build_evaluations(config.targets, config.recipes, config.models, partitions),
        *build_controls(list(config.targets), config.recipes, partitions),
    ]
    resources = {**build_resources(config), **resource_overrides}
    return dg.Definitions(
        assets=[
            *build_entries(config.datasets, config.models, config.targets, partitions),
            *with_automation(made, config),
        ],
        asset_checks=build_checks(config, partitions),
        sensors=[
            build_entry_sensor(config),
            build_condition_sensor(config),
            build_follow_up_sensor(config),
            *build_hub_sensor(config),
            *build_failure_sensor(config),
        ],
        schedules=build_schedules(config),
        executor=build_executor(partial(begin, config, resources)),
        resources=resources,
        loggers={"console": build_logger(config.home)},
    )


@dg.definitions
def definitions() -> dg.Definitions:
    """The definitions of the configuration named by MONA_CONFIG."""
    config = load_config()
    note(config)
    return build_definitions(config)
