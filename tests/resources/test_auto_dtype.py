"""What `dtype: auto` meant where a home was first used stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from mona import device
from mona.spec import ModelSpec
from resources import models
from resources.models import Models

SPEC = {
    "language_model": {"path": "model"},
    "sae": {"train": {"datasets": ["fruit"]}},
}


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    models._say_once.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, flags: set[str]) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: frozenset(flags))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (set(), {"avx512_bf16"}, "float32"),
        ({"amx_bf16"}, set(), "bfloat16"),
    ],
)
def test_another_machine_says_so_and_encodes_nothing_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: set[str],
    second: set[str],
    kept: str,
) -> None:
    spec = ModelSpec.model_validate(SPEC)
    (tmp_path / "model").mkdir()
    shelf = Models(home=str(tmp_path / "home"), device="cpu")
    machine(monkeypatch, first)
    fields = shelf._encoder_fields(spec)
    assert fields["dtype"] == kept
    assert capsys.readouterr().err == ""
    machine(monkeypatch, second)
    again = Models(home=str(tmp_path / "home"), device="cpu")
    assert again._encoder_fields(spec) == fields
    assert again._encoder_fields(spec) == fields
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"dtype: auto is {kept}, as where {tmp_path / 'home'} was first used")
    # A named dtype is what it says.
    named = ModelSpec.model_validate({**SPEC, "dtype": "float32"})
    assert again._encoder_fields(named)["dtype"] == "float32"
    assert capsys.readouterr().err == ""
