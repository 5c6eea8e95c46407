"""What `mona check` says of a model's folder and its SAE's, before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from orchestration.check import Scope, faults
from orchestration.definitions import build_resources
from tests.orchestration.conftest import Project


@pytest.fixture
def own(project: Project) -> Project:
    """The project over a model folder of its own."""
    model = project.settings["models"]["tiny"]["language_model"]
    model["path"] = str(shutil.copytree(model["path"], project.root / "model"))
    return project


def _faults(project: Project) -> list[str]:
    config = project.config
    resources = build_resources(config)
    return faults(Scope.of(config, resources["sources"], resources["shelf"]))


def _quantised(project: Project) -> None:
    path = project.root / "model" / "config.json"
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": said}))


def _cut(project: Project) -> None:
    path = project.root / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def _layer(project: Project) -> None:
    project.settings["models"]["tiny"]["layer"] = 40


def _gguf(project: Project) -> None:
    (project.root / "model.gguf").write_bytes(b"<html>not found</html>")
    project.settings["models"]["tiny"]["language_model"]["path"] = str(project.root / "model.gguf")


def _eleuther(project: Project, **fields: Any) -> None:
    import torch
    from safetensors.torch import save_file

    folder = project.root / "sae" / "layers.4"
    folder.mkdir(parents=True)
    width = fields.get("d_in", 32)
    tensors = {
        "encoder.weight": torch.ones(64, width),
        "encoder.bias": torch.zeros(64),
        "W_dec": torch.ones(64, width),
        "b_dec": torch.zeros(width),
    }
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 32, "num_latents": 64, "k": 4} | fields))
    project.settings["models"]["tiny"]["sae"] = {
        "load": {"path": "sae", "subfolder": "layers.4", "format": "eleuther"},
        "quality_datasets": ["fruit"],
    }


def _sae_of_another_layer(project: Project) -> None:
    _eleuther(project)
    project.settings["models"]["tiny"]["layer"] = 2


def _k_past_the_sae(project: Project) -> None:
    _eleuther(project)
    project.settings["models"]["tiny"]["k"] = 65


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_quantised, "models.tiny: "),
        (_quantised, "weights are quantised (gptq)"),
        (_cut, "model.safetensors is damaged"),
        (_layer, "models.tiny: layer 40 is outside the model: 1 to 5"),
        (_gguf, "model.gguf: not a GGUF file"),
        (lambda p: _eleuther(p, d_in=24), "width 24; the model's has width 32"),
        (lambda p: _eleuther(p, signed=True), "models.tiny.sae.load: "),
        (lambda p: _eleuther(p, signed=True), "signed = True is not supported"),
        (_sae_of_another_layer, "this model entry reads hidden_states[2]"),
        (_k_past_the_sae, "k = 65 is outside 1..64"),
    ],
)
def test_a_model_or_sae_that_cannot_be_read_is_found_by_check(
    damage: Callable[[Project], None], message: str, own: Project
) -> None:
    damage(own)
    (fault,) = _faults(own)
    assert message in fault
    assert "\n" not in fault


def test_a_sound_model_and_sae_have_no_faults(own: Project) -> None:
    assert _faults(own) == []
    _eleuther(own)
    assert _faults(own) == []


def test_faults_of_model_and_sae_are_said_at_once(own: Project) -> None:
    _layer(own)
    _eleuther(own, transcode=True)
    own.settings["models"]["tiny"]["max_length"] = 16
    found = _faults(own)
    assert [fault.split(":")[0] for fault in found] == ["models.tiny", "models.tiny.sae.load"]


def test_an_mlp_view_of_a_model_without_one_is_refused_by_name(own: Project) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=3, n_head=4, n_positions=512)
    GPT2LMHeadModel(config).save_pretrained(own.root / "model")
    own.settings["models"]["tiny"]["max_length"] = 512
    assert _faults(own) == []
    recipe = {"representation": "mlp_topk", "similarity": "cosine", "budget": {"share": 0.5}}
    own.settings["recipes"]["by_mlp"] = recipe
    (fault,) = _faults(own)
    assert "representation 'mlp_topk'" in fault
    assert "gpt2" in fault


def test_a_fine_tune_longer_than_its_models_positions_is_found_by_check(own: Project) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sound = own.settings["models"]["tiny"]["language_model"]["path"]
    base = own.root / "base"
    shutil.copytree(sound, base)
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=3, n_head=4, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(base)
    tuned = {"budget": {"share": 0.5}, "finetune": {"max_length": 129}}
    own.settings["recipes"]["tuned"] = tuned | {
        "finetune": {"max_length": 129, "base": {"path": str(base)}}
    }
    (fault,) = _faults(own)
    assert fault.startswith("recipes.tuned.finetune.base: max_length 129 is past")
    own.settings["recipes"]["tuned"] = tuned
    assert _faults(own) == []
    own.settings["models"]["tiny"]["language_model"]["path"] = str(base)
    own.settings["models"]["tiny"]["max_length"] = 129
    assert [fault.partition(": ")[0] for fault in _faults(own)] == [
        "models.tiny",
        "recipes.tuned.finetune",
    ]
