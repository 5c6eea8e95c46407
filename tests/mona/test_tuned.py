"""Tuned models read back: their digest, and that loading gives the model that was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mona.errors import RequestError, WorkError
from mona.finetune import train
from mona.sample import Message
from mona.spec import FinetuneSpec, Lora
from mona.tuned import is_adapter, load_tuned, tuned_digest

SAMPLES = [[Message("user", f"Bird {i}?"), Message("assistant", "Heron" * i)] for i in range(1, 5)]
TEXT = torch.tensor([[72, 101, 82, 79, 110, 12, 7, 200, 45, 90]])


def _tune(base: Path, folder: Path, lora: Lora | None) -> Path:
    spec = FinetuneSpec(
        lora=lora, epochs=4, learning_rate=1e-2, batch_size=4, micro_batch_size=4, dtype="float32"
    )
    out, scratch = folder / "out", folder / "scratch"
    train(SAMPLES, base, spec, out, scratch, device="cpu", progress=lambda steps: None)
    return out


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tune(tiny_llama, tmp_path_factory.mktemp("adapter"), Lora(rank=4))


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TEXT).logits.float()


def _by_hand(base: Path, adapter: Path) -> torch.Tensor:
    """Logits in float64 of the base with each B A alpha / r added to its weight."""
    from safetensors.torch import load_file

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    stored = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name, weight in model.named_parameters():
        key = "base_model.model." + name.removesuffix(".weight")
        if f"{key}.lora_A.weight" in stored:
            a, b = stored[f"{key}.lora_A.weight"], stored[f"{key}.lora_B.weight"]
            weight.data += (b.double() @ a.double()) * config["lora_alpha"] / config["r"]
    return _logits(model)


def test_an_adapter_is_the_base_with_its_products_added(tiny_llama: Path, adapter: Path) -> None:
    expected = _by_hand(tiny_llama, adapter)
    model, tokenizer = load_tuned(adapter, tiny_llama, "cpu", "float32")
    assert is_adapter(adapter)
    assert not model.training
    assert torch.allclose(_logits(model), expected, atol=1e-4)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    moved = (_logits(base) - expected).abs().max()
    assert moved > 0.1
    assert tokenizer.chat_template

    bf16, _ = load_tuned(adapter, tiny_llama, "cpu", "bfloat16")
    assert {weight.dtype for weight in bf16.parameters()} == {torch.bfloat16}
    assert type(bf16) is type(base)
    assert (_logits(bf16) - expected).abs().mean() < 0.2 * (_logits(base) - expected).abs().mean()


def test_a_whole_model_is_loaded_without_its_base(tiny_llama: Path, tmp_path: Path) -> None:
    out = _tune(tiny_llama, tmp_path, None)
    model, tokenizer = load_tuned(out, tmp_path / "no base", "cpu", "float32")
    assert not is_adapter(out)
    expected = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(_logits(model), _logits(expected))
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_llama).get_vocab()


def test_the_digest_is_of_what_decides_results(adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    (copy / "training_log.json").write_text("{}")
    (copy / "README.md").write_text("A card.")
    assert tuned_digest(copy) == tuned_digest(adapter)
    for name in ("adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"):
        changed = tmp_path / name
        shutil.copytree(adapter, changed)
        with (changed / name).open("ab") as stream:
            stream.write(b" ")
        assert tuned_digest(changed) != tuned_digest(adapter)


def test_what_is_no_tuned_model_is_refused(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such model folder"):
        load_tuned(tmp_path / "none", tiny_llama, "cpu", "float32")
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    # Pickled weights are no substitute.
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(RequestError, match=r"without adapter_model\.safetensors"):
        load_tuned(copy, tiny_llama, "cpu", "float32")
    with pytest.raises(RequestError, match=r"without adapter_model\.safetensors"):
        tuned_digest(copy)


def test_an_adapter_of_another_model_is_refused(
    tiny_llama: Path, adapter: Path, tmp_path: Path
) -> None:
    config = AutoModelForCausalLM.from_pretrained(tiny_llama).config
    config.intermediate_size = 64
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(WorkError, match="does not fit the model"):
        load_tuned(adapter, other, "cpu", "float32")


@pytest.mark.parametrize("damaged", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_model_is_one_line(damaged: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tuned"))
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(RequestError, match="tuned: the model does not load") as raised:
        load_tuned(folder, tiny_llama, "cpu", "float32")
    assert "\n" not in str(raised.value)
