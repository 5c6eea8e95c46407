"""Faults of a model folder that show before its weights are loaded, each in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mona.errors import sentence
from mona.model_check import file_faults, inspect_model, model_faults, vocabulary_fault


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def _faults(folder: Path, **options: Any) -> list[str]:
    settings: dict[str, Any] = {
        "layer": -2,
        "max_length": 256,
        "mlp": True,
        "trust_remote_code": False,
    }
    faults = model_faults(folder, **(settings | options))
    assert not any("\n" in fault for fault in faults)
    return faults


def _edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_sound_folder_has_no_faults(tiny_llama: Path) -> None:
    assert _faults(tiny_llama) == []
    found = inspect_model(tiny_llama, layer=1, max_length=8, mlp=False, trust_remote_code=False)
    assert (found.blocks, found.width) == (5, 32)


# --- files


def _sharded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_read_by_their_index(folder: Path) -> None:
    _sharded(folder)
    assert _faults(folder) == []
    (folder / "model-00002-of-00002.safetensors").unlink()
    (fault,) = _faults(folder)
    assert "index.json names model-00002-of-00002.safetensors, which is missing" in fault
    (folder / "model.safetensors.index.json").unlink()
    (fault,) = _faults(folder)
    assert "neither model.safetensors nor named by model.safetensors.index.json" in fault


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": []}', '{"weight_map": 3}'])
def test_an_index_that_names_nothing_is_named(text: str, folder: Path) -> None:
    _sharded(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    (fault,) = _faults(folder)
    assert "model.safetensors.index.json names no weights" in fault


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_every_pointer_in_place_of_a_file_is_named(folder: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(POINTER)
    faults = _faults(folder)
    assert [fault.split(":")[0].rsplit("/", 1)[1] for fault in faults] == [
        "model.safetensors",
        "tokenizer.json",
    ]
    assert all("git LFS pointer" in fault and "git lfs pull" in fault for fault in faults)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\xff" * 64, b"\x08" + 7 * b"\0" + b"{}      "]
)
def test_weights_that_are_no_safetensors_are_named(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    (fault,) = _faults(folder)
    assert "model.safetensors" in fault


def test_cut_weights_of_one_shard_are_named(folder: Path) -> None:
    _sharded(folder)
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (fault,) = _faults(folder)
    assert "model-00001-of-00002.safetensors is damaged" in fault


def test_files_are_looked_at_without_torch(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import mona.model_check as check, mona.sae_check;"
        f"faults = check.file_faults(Path({str(folder)!r}));"
        "sys.exit(len(faults) + 10 * bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert done.returncode == 0


# --- configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("{oops", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "is no JSON object"),
        ("{}", "config.json"),
        ('{"model_type": "no_such_model"}', "no_such_model"),
        ('{"model_type": ["llama"]}', "config.json"),
        ('{"model_type": "llama", "rope_parameters": "yes"}', "config.json"),
    ],
)
def test_a_configuration_that_is_none_is_named(text: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    (fault,) = _faults(folder)
    assert message in fault


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": "5"},
        {"num_hidden_layers": None},
        {"num_hidden_layers": 0},
        {"hidden_size": 32.5},
        {"hidden_size": []},
        {"num_attention_heads": 0},
        {"num_attention_heads": "four"},
        {"vocab_size": -1},
        {"hidden_act": "no_such_function"},
        {"rms_norm_eps": "small"},
        {"intermediate_size": {"a": 1}},
        {"max_position_embeddings": "many"},
        {"quantization_config": []},
        {"quantization_config": 7},
        {"torch_dtype": "no_dtype"},
    ],
)
def test_a_field_of_a_wrong_type_is_one_line_or_does_not_matter(
    fields: dict[str, Any], folder: Path
) -> None:
    """Never an exception; what transformers refuses is refused here."""
    _edit(folder, **fields)
    faults = _faults(folder)
    if next(iter(fields)) not in ("quantization_config", "torch_dtype"):
        assert faults
        assert "model" in faults[0]


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "of_tomorrow"},
    ],
)
def test_weights_that_are_quantised_are_named_with_the_librarys_sentence(
    said: dict[str, Any], folder: Path
) -> None:
    _edit(folder, quantization_config=said)
    faults = _faults(folder)
    assert len(faults) == 1
    assert "config.json: weights are quantised" in faults[0]
    assert said["quant_method"] in faults[0]


def test_all_faults_are_said_at_once(folder: Path) -> None:
    _edit(folder, intermediate_size=64)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    faults = _faults(folder, layer=9)
    assert len(faults) == 3
    assert faults[0] == "layer 9 is outside the model: 1 to 5, or -5 to -1"
    assert "has shape [32, 48], config.json gives it [32, 64]" in faults[1]
    assert "the tokenizer does not load" in faults[2]


def test_code_of_a_model_is_not_run_unless_its_entry_says_so(folder: Path) -> None:
    _edit(
        folder,
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (folder / "own.py").write_text("raise SystemExit('it ran')\n")
    (fault,) = _faults(folder)
    assert "config.json: the model runs code of its own" in fault
    assert "trust_remote_code: true" in fault


# --- vocabulary


class _Tokenizer:
    def __init__(self, tokens: int, added: dict[int, str], template: str = "") -> None:
        self.vocab = {f"t{i}": i for i in range(tokens)} | {t: i for i, t in added.items()}
        self.added_tokens_decoder = added
        self.chat_template = template
        self.bos_token_id, self.eos_token_id = 0, 1

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def __len__(self) -> int:
        return len(self.vocab)


def test_ids_past_the_embedding_are_a_fault_where_text_can_bring_them() -> None:
    assert vocabulary_fault(_Tokenizer(290, {}), 290) is None
    fault = vocabulary_fault(_Tokenizer(293, {}), 290)
    assert fault is not None
    assert "293 tokens, but the embedding has 290 rows, none for token 't290' (id 290)" in fault
    # As Gemma 3's token for images: neither its template nor text as plain text gives it.
    assert vocabulary_fault(_Tokenizer(290, {290: "<image>"}), 290) is None
    assert vocabulary_fault(_Tokenizer(290, {290: "<turn>"}, "{{ '<turn>' }}"), 290) is not None
    ends = _Tokenizer(290, {290: "<end>"})
    ends.eos_token_id = 290
    assert vocabulary_fault(ends, 290) is not None


def test_a_model_with_fewer_rows_than_its_tokenizer_has_tokens_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:200].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _edit(folder, vocab_size=200)
    (fault,) = _faults(folder)
    assert "tokenizer and model disagree: 258 tokens, but the embedding has 200 rows" in fault


# --- the words


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError("k"), "KeyError: 'k'"),
        (TypeError("no"), "TypeError: no"),
        (OSError(), "OSError"),
        (ValueError("x" * 400), "x" * 297 + "..."),
    ],
)
def test_a_librarys_sentence_is_one_line_that_says_something(error: Exception, said: str) -> None:
    assert sentence(error) == said


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    assert file_faults(tmp_path / "absent") == [f"{tmp_path / 'absent'}: no such model folder"]


_MUTATIONS: list[Callable[[bytes], bytes]] = [
    lambda b: b[: len(b) // 2],
    lambda b: b.replace(b"1", b"null"),
    lambda b: b.replace(b'"', b"'"),
    lambda b: b.replace(b":", b": -"),
    lambda b: b"\xff\xfe" + b,
    lambda b: b.replace(b"true", b'"x"').replace(b"false", b"[]"),
]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("mutate", _MUTATIONS)
def test_no_mutation_of_a_json_file_is_an_exception(
    name: str, mutate: Callable[[bytes], bytes], folder: Path
) -> None:
    path = folder / name
    path.write_bytes(mutate(path.read_bytes()))
    _faults(folder)
