"""Every family of decoders that people have: streams equal the whole model's, at any layer and
beside any neighbour, and what can't be read is refused in one line.

Models are tiny and random, of the classes of the installed transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from mona.architecture import find_decoder
from mona.encoder import Encoder
from mona.errors import RequestError
from mona.model_check import model_faults
from mona.spec import TokenPolicy
from mona.tokens import Tokenised

WIDTH, BLOCKS, POSITIONS = 32, 3, 64

_PLAIN: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
_SLIDING = _PLAIN | {"sliding_window": 4}
_EXPERTS = _PLAIN | {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
}
_GPT: dict[str, Any] = {
    "n_embd": WIDTH,
    "n_inner": 48,
    "n_layer": BLOCKS,
    "n_head": 4,
    "n_positions": POSITIONS,
    "rotary_dim": 4,
}
_LATENT_ATTENTION: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
_LINEAR_ATTENTION: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_OPT = _PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}
_FALCON = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
# name: (model type where the name is another, settings)
FAMILIES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "llama": (None, _PLAIN),
    "mistral": (None, _SLIDING),
    "qwen2": (None, _SLIDING | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": (None, _PLAIN),
    "gemma": (None, _PLAIN),
    "gemma2": (None, _SLIDING),
    "gemma3_text": (None, _SLIDING),
    "phi": (None, _PLAIN),
    "phi3": (None, _PLAIN),
    "gpt2": (None, _GPT),
    "gpt_bigcode": (None, _GPT),
    "openai-gpt": (None, _GPT),
    "gpt_neo": (
        None,
        {
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_layers": BLOCKS,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "gptj": (None, _GPT),
    "codegen": (None, _GPT),
    "ctrl": (None, _GPT | {"dff": 48}),
    "gpt_neox": (None, _PLAIN),
    "bloom": (None, {"hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": 4}),
    "opt": (None, _OPT),
    "opt_projecting": (
        "opt",
        _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "mpt": (
        None,
        {
            "d_model": WIDTH,
            "n_layers": BLOCKS,
            "n_heads": 4,
            "max_seq_len": POSITIONS,
            "expansion_ratio": 2,
        },
    ),
    "falcon": (None, _FALCON),
    "falcon_alibi": (
        "falcon",
        _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "stablelm": (None, _PLAIN),
    "starcoder2": (None, _SLIDING),
    "cohere": (None, _PLAIN),
    "cohere2": (None, _SLIDING),
    "olmo": (None, _PLAIN),
    "olmo2": (None, _PLAIN),
    "olmoe": (None, _EXPERTS),
    "mixtral": (None, _EXPERTS),
    "qwen2_moe": (None, _EXPERTS),
    "qwen3_moe": (None, _EXPERTS),
    "deepseek_v3": (None, _EXPERTS | _LATENT_ATTENTION | {"n_group": 2, "topk_group": 1}),
    "granite": (None, _PLAIN),
    "granitemoe": (None, _EXPERTS),
    "glm": (None, _PLAIN),
    "glm4": (None, _PLAIN),
    "smollm3": (None, _PLAIN),
    "helium": (None, _PLAIN),
    "nemotron": (None, _PLAIN),
    "persimmon": (None, _PLAIN),
    "xglm": (
        None,
        {
            "d_model": WIDTH,
            "ffn_dim": 48,
            "num_layers": BLOCKS,
            "attention_heads": 4,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "biogpt": (None, _PLAIN),
    "lfm2": (None, _PLAIN | {"full_attn_idxs": [1]}),
    "gpt_oss": (None, _EXPERTS | {"sliding_window": 4}),
    "exaone4": (None, _SLIDING),
    "minimax": (None, _EXPERTS | {"block_size": 8}),
    "phimoe": (None, _EXPERTS),
    "llama4_text": (None, _EXPERTS | {"intermediate_size_mlp": 48}),
    "qwen3_next": (None, _EXPERTS | _LINEAR_ATTENTION),
    "jamba": (
        None,
        _EXPERTS
        | {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
}
# Of those, the ones whose block at layer -2 has a gated MLP.
GATED = {
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "stablelm"),
    *("cohere", "cohere2", "olmo", "olmo2", "granite", "glm", "glm4", "smollm3", "helium"),
    *("lfm2", "exaone4"),
}
LEARNED_POSITIONS = {
    *("gpt2", "gpt_bigcode", "openai-gpt", "gpt_neo", "gptj", "codegen", "ctrl"),
    *("opt", "opt_projecting", "mpt", "biogpt"),
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def make(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the folder of a family once."""
    root = tmp_path_factory.mktemp("families")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def of(name: str, **more: Any) -> Path:
        folder = root / "-".join([name, *map(str, more)])
        if not folder.exists():
            kind, settings = FAMILIES[name]
            config = AutoConfig.for_model(
                kind or name, **({"vocab_size": len(tokenizer)} | settings | more)
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():  # or biases and norms do nothing
                    parameter.add_(0.05 * torch.randn_like(parameter))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return of


def _load(folder: Path, **options: Any) -> Encoder:
    settings: dict[str, Any] = {
        "layer": -2,
        "dtype": "float32",
        "device": "cpu",
        "template": "chat",
        "policy": TokenPolicy(),
        "max_length": 48,
    }
    return Encoder.load(folder, **(settings | options))


def _rows(lengths: list[int]) -> list[Tokenised]:
    random = np.random.default_rng(3)
    return [
        Tokenised(random.integers(0, 256, n).astype(np.int32), random.random(n) < 0.8, length=n)
        for n in lengths
    ]


def _whole_models_streams(folder: Path, rows: list[Tokenised]) -> list[list[torch.Tensor]]:
    """For each row alone, hidden_states of the untouched model, the last one before the norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last: list[torch.Tensor] = []
    find_decoder(model, BLOCKS)[1][-1].register_forward_hook(
        lambda _m, _i, out: last.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    streams = []
    for row in rows:
        with torch.no_grad():
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            made = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        counted = torch.from_numpy(row.counted)
        streams.append([*(s[0][counted] for s in made[:-1]), last.pop()[0][counted]])
    return streams


@pytest.mark.parametrize("name", FAMILIES)
def test_streams_are_hidden_states_beside_any_neighbour(name: str, make: Any) -> None:
    folder = make(name)
    rows = _rows([5, 31, 12])
    expected = _whole_models_streams(folder, rows)
    for layer in (1, BLOCKS):
        encoder = _load(folder, layer=layer)
        assert (encoder.width, len(encoder.blocks)) == (WIDTH, layer)
        made = encoder.forward(rows)
        assert made.mlp is None
        for i, streams in enumerate(expected):
            got = made.states[int(made.offsets[i]) : int(made.offsets[i + 1])]
            scale = float(streams[layer].abs().max())
            torch.testing.assert_close(got, streams[layer], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gated_mlp_is_tapped_on_request_and_any_other_is_refused_by_name(
    name: str, make: Any
) -> None:
    folder = make(name)
    if name in GATED:
        encoder = _load(folder, mlp=True)
        made = encoder.forward(_rows([9, 4]))
        assert made.mlp is not None
        assert made.mlp.shape == (len(made.states), encoder.mlp_width)
    else:
        with pytest.raises(RequestError, match="'mlp_topk' reads a gated MLP") as raised:
            _load(folder, mlp=True)
        assert (FAMILIES[name][0] or name) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", sorted(LEARNED_POSITIONS))
def test_max_length_past_the_positions_is_refused_and_the_limit_is_not(
    name: str, make: Any
) -> None:
    folder = make(name)
    with pytest.raises(RequestError, match=rf"max_length {POSITIONS + 1} is past.*{POSITIONS} "):
        _load(folder, max_length=POSITIONS + 1)
    _load(folder, layer=1, max_length=POSITIONS).forward(_rows([POSITIONS]))


def test_positions_without_an_end_have_no_limit(make: Any) -> None:
    for name in ("llama", "bloom", "xglm"):
        _load(make(name), layer=1, max_length=9 * POSITIONS).forward(_rows([2 * POSITIONS]))


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}),
        ("llama", {"rope_type": "dynamic", "factor": 4.0}),
    ],
)
def test_positions_that_depend_on_the_batch_end_where_they_do_not(
    name: str, rope: dict[str, Any], make: Any
) -> None:
    rope = rope | {"rope_theta": 1e4, "original_max_position_embeddings": 16}
    folder = make(name, rope_parameters=rope, original_max_position_embeddings=16)
    with pytest.raises(RequestError, match=r"max_length 48 is past.*16 positions before its"):
        _load(folder)
    rows = _rows([5, 16])
    made = _load(folder, max_length=16).forward(rows)
    expected = torch.cat([streams[2] for streams in _whole_models_streams(folder, rows)])
    torch.testing.assert_close(made.states, expected, rtol=1e-4, atol=1e-5)


def test_a_multimodal_model_is_read_by_its_text_part(make: Any) -> None:
    text = make("gemma3_text")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    settings = json.loads((text / "config.json").read_text())
    config = AutoConfig.for_model("gemma3", text_config=settings, vision_config=vision)
    folder = text.with_name("gemma3")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(text).save_pretrained(folder)
    encoder = _load(folder, layer=1)
    assert (encoder.width, len(encoder.blocks)) == (WIDTH, 1)
    assert encoder.forward(_rows([5])).states.shape[1] == WIDTH


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("mamba", {"state_size": 4}, "mamba has no attention"),
        ("mamba2", {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1}, "no attention"),
        ("rwkv", {}, "rwkv has no attention"),
        ("bert", _PLAIN, "bert attends to later tokens"),
        ("roberta", _PLAIN, "roberta attends to later tokens"),
        ("t5", {"d_model": WIDTH, "d_ff": 32, "num_layers": 1}, "t5 is an encoder-decoder"),
        ("bart", {"d_model": WIDTH}, "bart is an encoder-decoder"),
        ("gemma3_text", _PLAIN | {"use_bidirectional_attention": True}, "later tokens"),
    ],
)
def test_what_is_no_transformer_decoder_is_refused_in_one_line(
    kind: str, settings: dict[str, Any], message: str, make: Any, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind, **({"vocab_size": 260, "hidden_size": WIDTH} | settings))
    shutil.copytree(make("llama"), tmp_path / "model")
    config.save_pretrained(tmp_path / "model")
    (fault,) = model_faults(
        tmp_path / "model", layer=-2, max_length=32, mlp=False, trust_remote_code=False
    )
    assert message in fault
    assert "\n" not in fault
    with pytest.raises(RequestError, match=message):
        _load(tmp_path / "model")


def test_attention_that_is_not_installed_gives_way_to_the_plain_one(
    make: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make("llama"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["attn_implementation"] = "flash_attention_2"
    (folder / "config.json").write_text(json.dumps(config))
    rows = _rows([9, 5])
    torch.testing.assert_close(
        _load(folder).forward(rows).states,
        _load(make("llama")).forward(rows).states,
        rtol=1e-4,
        atol=1e-5,
    )


def test_blocks_that_depend_on_how_many_there_are_are_loaded_whole(make: Any) -> None:
    """MiniMax and Jamba derive a block's kind from the number of blocks or refuse to be cut."""
    assert _load(make("llama"), layer=2).backbone.config.num_hidden_layers == 2
    assert _load(make("jamba"), layer=2).backbone.config.num_hidden_layers == BLOCKS


def test_blocks_under_an_unknown_name_are_found_by_their_number() -> None:
    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
            self.stack = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(Decoder())

        def get_decoder(self) -> torch.nn.Module:
            return self.inner

    model = Model()
    decoder, blocks = find_decoder(model, 4)
    assert (decoder, blocks) == (model.inner[0], model.inner[0].stack)
    with pytest.raises(RequestError, match="blocks of Model are not where they are known"):
        find_decoder(model, 7)


def test_a_model_that_loads_but_can_t_run_is_one_line(make: Any) -> None:
    """More experts a token than the model has: nothing of its files is wrong."""
    folder = make("qwen3_moe", num_experts_per_tok=6)
    with pytest.raises(RequestError, match=rf"^{folder}: the model does not run: .*out of range"):
        _load(folder)
