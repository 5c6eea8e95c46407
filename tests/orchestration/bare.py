"""A configuration without data or models behind it: enough for Dagster's home and definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from orchestration.config import Config, load_config


def bare_settings() -> dict[str, Any]:
    return {
        "store": {"root": "store"},
        "datasets": {"fruit": {"sources": [{"name": "fruit", "path": "fruit.jsonl"}]}},
        "models": {
            "tiny": {
                "language_model": {"path": "model"},
                "sae": {"train": {"datasets": ["fruit"]}, "max_fvu": 0.5},
            }
        },
        "targets": {"adding": {"reader": "pool", "examples": {"path": "examples.jsonl"}}},
        "recipes": {"mona": {"budget": {"count": 3}}},
    }


def bare_config(folder: Path, settings: dict[str, Any] | None = None) -> Config:
    path = folder / "mona.yaml"
    path.write_text(yaml.safe_dump(settings or bare_settings()))
    return load_config(path)
