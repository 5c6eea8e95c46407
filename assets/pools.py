"""The Dagster pools that steps of different runs share a machine by; `orchestration.home` sets
their limits."""

GPU_POOL = "gpu"  # runs a language model; one step at a time, so no two share the device
CPU_POOL = "cpu"  # reads, ranks, writes; as many steps at a time as there are cores
