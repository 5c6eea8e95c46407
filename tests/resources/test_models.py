"""What names an encoder: an edit of the entry that changes a rendered text changes the name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mona.spec import LanguageModel, ModelSpec, SaeSpec, SaeTraining
from resources import models
from resources.models import Models


def _entry(folder: Path, **changes: Any) -> ModelSpec:
    return ModelSpec(
        language_model=LanguageModel(path=str(folder)),
        sae=SaeSpec(train=SaeTraining(datasets=["d"])),
        **changes,
    )


@pytest.mark.parametrize("edited", [{"system": "fold"}, {"template": "plain"}])
def test_how_text_is_rendered_is_in_the_encoders_name(
    tiny_llama: Path, tmp_path: Path, edited: dict[str, Any]
) -> None:
    shelf = Models(home=str(tmp_path), device="cpu")
    before, after = _entry(tiny_llama), _entry(tiny_llama, **edited)
    assert shelf.resolve("m", before).encoder != shelf.resolve("m", after).encoder
    old, new = shelf.entry_versions("m", before), shelf.entry_versions("m", after)
    assert {part for part in old if old[part] != new[part]} == {"encoder"}


def test_another_way_of_rendering_gives_the_encoder_another_name(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Models(home=str(tmp_path), device="cpu")
    before = shelf.resolve("m", _entry(tiny_llama)).encoder
    monkeypatch.setattr(models, "RENDERING_VERSION", 99)
    assert shelf.resolve("m", _entry(tiny_llama)).encoder != before


def test_the_loaded_encoder_folds(tiny_llama: Path, tmp_path: Path) -> None:
    shelf = Models(home=str(tmp_path), device="cpu")
    for system in ("fold", "keep"):
        resolved = shelf.resolve("m", _entry(tiny_llama, system=system))
        assert shelf.encoder(resolved).renderer.system == system
