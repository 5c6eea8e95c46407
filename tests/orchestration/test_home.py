"""orchestration.home: which steps may run beside each other."""

from __future__ import annotations

import os

from assets.keys import ACTIVATIONS, RAW_POOL, SAE, examples, prototype
from assets.pools import CPU_POOL, GPU_POOL
from orchestration.home import open_instance
from tests.orchestration.conftest import Project


def _claimed(project: Project, pool: str) -> int:
    """How many of many steps that ask for the pool at once get a place in it."""
    with open_instance(project.config) as instance:
        storage = instance.event_log_storage
        if pool not in storage.get_concurrency_keys():  # as a run's first step does
            storage.initialize_concurrency_limit_to_default(pool)
        claims = [
            storage.claim_concurrency_slot(pool, f"run{i}", f"step{i}")
            for i in range((os.cpu_count() or 1) + 3)
        ]
        for i in range(len(claims)):
            storage.free_concurrency_slots_for_run(f"run{i}")
    return sum(claim.is_claimed for claim in claims)


def test_every_step_is_in_a_pool_and_no_two_share_the_device(project: Project) -> None:
    with project.opened() as (_, definitions, _instance):
        graph = definitions.resolve_asset_graph()
        pools = {key: graph.get(key).pools for key in graph.materializable_asset_keys}
    assert set.union(*pools.values()) == {CPU_POOL, GPU_POOL}
    assert all(len(each) == 1 for each in pools.values())
    (target,) = project.settings["targets"]
    on_device = {ACTIVATIONS, SAE, prototype(target)}
    assert all(pools[key] == {GPU_POOL} for key in on_device)
    assert pools[RAW_POOL] == pools[examples(target)] == {CPU_POOL}
    assert _claimed(project, GPU_POOL) == 1


def test_cpu_steps_share_the_cores_unless_the_user_set_a_limit(project: Project) -> None:
    assert _claimed(project, CPU_POOL) == os.cpu_count()
    with open_instance(project.config) as instance:
        instance.event_log_storage.set_concurrency_slots(CPU_POOL, 1)
    assert _claimed(project, CPU_POOL) == 1
