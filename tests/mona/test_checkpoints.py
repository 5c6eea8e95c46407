"""Model folders: digests that follow what decides results, refusals, and GGUF preparation."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mona.checkpoints import deciding_files, model_digest, prepare_gguf, refuse_nan
from mona.errors import RequestError, WorkError


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_deciding_files_are_the_weights_config_tokenizer_and_template(folder: Path) -> None:
    names = [path.name for path in deciding_files(folder)]
    assert names == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_digest_is_the_hash_of_names_and_file_hashes(folder: Path) -> None:
    listing = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in deciding_files(folder)
    )
    assert model_digest(folder) == hashlib.sha256(listing.encode()).hexdigest()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_digest_moves_with_one_byte_of_what_decides_results(folder: Path, name: str) -> None:
    before = model_digest(folder)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_digest(folder) != before


def test_digest_stays_when_only_generation_settings_or_notes_change(folder: Path) -> None:
    before = model_digest(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.3}')
    (folder / "README.md").write_text("notes")
    assert model_digest(folder) == before


def test_digest_moves_when_a_file_is_renamed(folder: Path) -> None:
    before = model_digest(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert model_digest(folder) != before


def test_digest_imports_neither_torch_nor_transformers(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mona.checkpoints import model_digest;"
        f"model_digest(Path({str(folder)!r}));"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert done.returncode == 0


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"model: no \*\.safetensors weights"):
        deciding_files(folder)


def test_pickled_weights_alone_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"pytorch_model\.bin.*only \*\.safetensors are read"):
        deciding_files(folder)


def test_a_folder_without_config_or_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="no such model folder"):
        deciding_files(folder / "absent")
    (folder / "config.json").unlink()
    with pytest.raises(RequestError, match=r"no config\.json"):
        deciding_files(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuse_nan_names_the_tensor(value: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    refuse_nan(model, "m")
    with torch.no_grad():
        model[1].weight[1, 2] = value
    with pytest.raises(WorkError, match=r"m: tensor '1\.weight'"):
        refuse_nan(model, "m")


def test_refuse_nan_accepts_finite_weights_whose_sum_overflows() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.fill_(3e38)
    refuse_nan(model, "m")


def test_prepare_refuses_what_is_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        prepare_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(RequestError, match=r"fake\.gguf: not a GGUF file"):
        prepare_gguf(fake, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:4],
        lambda whole: whole[:40],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:4] + b"\xff" * 60,
        lambda whole: whole[:4] + bytes(len(whole)),
        lambda whole: whole.replace(b"llama", b"lXXma"),
        lambda whole: whole.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.nothing"[:21]),
    ],
)
def test_a_damaged_gguf_is_one_line(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write_gguf(path, _gguf_tensors())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RequestError, match=r"model\.gguf: no GGUF model") as raised:
        prepare_gguf(path, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def _write_gguf(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A two-block Llama (width 64, MLP 96, 2 heads) with a byte vocabulary."""
    import gguf
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(257)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters, letters[0] + letters[1]])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, values in tensors.items():
        stored = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1) if values.ndim > 1 else None
        if stored is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (257, 64), "output_norm.weight": (64,)}
    for block in range(2):
        shapes |= {
            f"blk.{block}.attn_norm.weight": (64,),
            f"blk.{block}.ffn_norm.weight": (64,),
            **{f"blk.{block}.attn_{p}.weight": (64, 64) for p in ("q", "k", "v", "output")},
            f"blk.{block}.ffn_gate.weight": (96, 64),
            f"blk.{block}.ffn_up.weight": (96, 64),
            f"blk.{block}.ffn_down.weight": (64, 96),
        }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_prepared_weights_are_the_dequantised_ones_exactly(tmp_path: Path) -> None:
    import gguf

    tensors = _gguf_tensors()
    _write_gguf(tmp_path / "m.gguf", tensors)
    prepare_gguf(tmp_path / "m.gguf", tmp_path / "made" / "folder")
    got = load_file(tmp_path / "made" / "folder" / "model.safetensors")
    kind = gguf.GGMLQuantizationType.Q4_1
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }.items():
        expected = gguf.dequantize(gguf.quantize(tensors[theirs], kind), kind)
        assert got[ours].dtype == torch.float32
        np.testing.assert_array_equal(got[ours].numpy(), expected)
    # A dequantised weight that 16 bits would have changed, or the choice of dtype is idle.
    assert not torch.equal(got[ours], got[ours].bfloat16().float())
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["folder"]
    assert "quantization_config" not in (tmp_path / "made/folder/config.json").read_text()


def test_preparing_twice_gives_the_same_digest_and_keeps_the_first(tmp_path: Path) -> None:
    _write_gguf(tmp_path / "m.gguf", _gguf_tensors())
    prepare_gguf(tmp_path / "m.gguf", tmp_path / "a")
    prepare_gguf(tmp_path / "m.gguf", tmp_path / "b")
    assert model_digest(tmp_path / "a") == model_digest(tmp_path / "b")
    inode = (tmp_path / "a/model.safetensors").stat().st_ino
    prepare_gguf(tmp_path / "m.gguf", tmp_path / "a")
    assert (tmp_path / "a/model.safetensors").stat().st_ino == inode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "m.gguf"]


def test_a_gguf_with_a_nan_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    tensors = _gguf_tensors()
    tensors["blk.1.ffn_norm.weight"][3] = np.nan
    _write_gguf(tmp_path / "m.gguf", tensors)
    with pytest.raises(WorkError, match=r"model\.layers\.1\.post_attention_layernorm\.weight"):
        prepare_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_gguf_without_a_tensor_is_refused_not_filled(tmp_path: Path) -> None:
    tensors = _gguf_tensors()
    del tensors["blk.1.ffn_up.weight"]
    _write_gguf(tmp_path / "m.gguf", tensors)
    with pytest.raises(RequestError, match=r"no weights for tensor .*layers\.1\.mlp\.up_proj"):
        prepare_gguf(tmp_path / "m.gguf", tmp_path / "out")


def test_a_crash_while_saving_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerBase

    def full_disk(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    _write_gguf(tmp_path / "m.gguf", _gguf_tensors())
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepare_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.model
def test_smollm2_is_a_complete_float32_folder(smollm2: Path) -> None:
    tensors = load_file(smollm2 / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert (smollm2 / "chat_template.jinja").is_file()
