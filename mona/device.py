"""Which device and dtype "auto" means on this machine, decided without importing torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def resolve_device(device: str) -> str:
    """'cuda' or 'cpu'; 'auto' is cuda where the NVIDIA driver shows a device."""
    if device != "auto":
        return device
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"


def multiplies_bfloat16(device: str) -> bool:
    """Whether the resolved `device` has instructions for bfloat16 products: a GPU, or a CPU
    with AMX or AVX512-BF16."""
    return device == "cuda" or bool(_cpu_flags() & _BFLOAT16_FLAGS)


def resolve_dtype(dtype: str, device: str) -> str:
    """'bfloat16' or 'float32'; 'auto' is bfloat16 where the resolved `device` multiplies it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if multiplies_bfloat16(device) else "float32"
