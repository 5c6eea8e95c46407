"""The encoder against the full model: same residual streams, fewer blocks, any batch."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mona.encoder import Encoder, plan_batches
from mona.errors import RequestError, WorkError
from mona.model_check import absolute_layer
from mona.sample import Message
from mona.spec import TokenPolicy
from mona.tokens import Tokenised


def _load(folder: Path, layer: int = -2, **options: Any) -> Encoder:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "template": "chat",
        "policy": TokenPolicy(),
        "max_length": 256,
    }
    return Encoder.load(folder, layer=layer, **(settings | options))


def _rows(lengths: list[int], vocabulary: int = 256) -> list[Tokenised]:
    """Random rows; about two thirds of the tokens count."""
    random = np.random.default_rng(3)
    return [
        Tokenised(
            random.integers(0, vocabulary, n).astype(np.int32), random.random(n) < 0.67, length=n
        )
        for n in lengths
    ]


@functools.lru_cache(maxsize=1)
def _full_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _full_model_streams(folder: Path, row: Tokenised) -> list[torch.Tensor]:
    """hidden_states of the untouched model on one unpadded row, with the true pre-norm last."""
    model = _full_model(folder)
    before_norm: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(
        lambda _module, inputs: before_norm.append(inputs[0])
    )
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    with torch.no_grad():
        streams = model(input_ids=ids, output_hidden_states=True).hidden_states
    handle.remove()
    return [*(stream[0] for stream in streams[:-1]), before_norm[0][0]]


def _slices(states: Any) -> list[torch.Tensor]:
    return [
        states.states[a:b] for a, b in zip(states.offsets[:-1], states.offsets[1:], strict=True)
    ]


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path) -> Encoder:
    return _load(tiny_llama, mlp=True)


@pytest.mark.parametrize("layer", [1, 3, 4, 5, -1, -2, -5])
def test_streams_of_every_layer_are_the_full_models(tiny_llama: Path, layer: int) -> None:
    rows = _rows([17, 5, 40])
    made = _load(tiny_llama, layer).forward(rows)
    for row, got in zip(rows, _slices(made), strict=True):
        expected = _full_model_streams(tiny_llama, row)[layer][torch.from_numpy(row.counted)]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_before_the_final_norm(tiny_llama: Path) -> None:
    (row,) = _rows([12])
    got = _load(tiny_llama, -1).forward([row]).states
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        normed = model(
            input_ids=torch.from_numpy(row.ids.astype(np.int64))[None], output_hidden_states=True
        ).hidden_states[-1][0][torch.from_numpy(row.counted)]
    assert not torch.allclose(got, normed, rtol=0.05)


def test_mlp_activations_are_act_of_gate_times_up(tiny_llama: Path, encoder: Encoder) -> None:
    (row,) = _rows([23])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    block = model.model.layers[3]
    seen: list[torch.Tensor] = []
    block.mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None])
        x = seen[0][0]
        gate, up = x @ block.mlp.gate_proj.weight.T, x @ block.mlp.up_proj.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * up)[torch.from_numpy(row.counted)]
    torch.testing.assert_close(encoder.forward([row]).mlp, expected, rtol=1e-4, atol=1e-6)


def test_only_the_needed_blocks_are_kept(tiny_llama: Path) -> None:
    assert len(_load(tiny_llama, 2).blocks) == 2
    assert len(_load(tiny_llama, 2, blocks_after=1).blocks) == 3
    assert len(_load(tiny_llama, 5, blocks_after=1).blocks) == 5
    assert not hasattr(_load(tiny_llama, 2).backbone, "lm_head")


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(encoder: Encoder, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    rows = _rows(lengths)
    order = data.draw(st.permutations(range(len(rows))))
    together = _slices(encoder.forward([rows[i] for i in order]))
    for place, i in enumerate(order):
        alone = encoder.forward([rows[i]])
        torch.testing.assert_close(together[place], alone.states, rtol=1e-4, atol=1e-5)
        assert len(alone.states) == int(rows[i].counted.sum())


def test_rows_without_counted_tokens_are_empty_slices(encoder: Encoder) -> None:
    first, second = _rows([9, 9])
    nothing = Tokenised(first.ids, np.zeros(9, bool), 9)
    no_tokens = Tokenised(np.zeros(0, np.int32), np.zeros(0, bool), 0)
    made = encoder.forward([nothing, second, no_tokens])
    assert np.diff(made.offsets).tolist() == [0, int(second.counted.sum()), 0]
    assert torch.isfinite(made.states).all()
    alone = encoder.forward([no_tokens])
    assert alone.states.shape == (0, 32)
    assert alone.mlp.shape == (0, 48)


def test_offsets_and_widths(encoder: Encoder) -> None:
    rows = _rows([4, 30, 11])
    made = encoder.forward(rows)
    assert made.offsets.dtype == np.int64
    assert made.offsets.tolist() == np.cumsum([0, *(row.counted.sum() for row in rows)]).tolist()
    assert made.states.shape == (made.offsets[-1], encoder.width)
    assert made.mlp.shape == (made.offsets[-1], encoder.mlp_width)


def test_the_mlp_is_tapped_only_where_it_is_asked_for(tiny_llama: Path) -> None:
    rows = _rows([4, 30, 11])
    plain, tapped = _load(tiny_llama), _load(tiny_llama, mlp=True)
    assert (plain.mlp_width, tapped.mlp_width) == (0, 48)
    made = plain.forward(rows)
    assert made.mlp is None
    torch.testing.assert_close(made.states, tapped.forward(rows).states, rtol=0, atol=0)
    memory = _Memory(fits=40)
    handle = plain.embedding.register_forward_pre_hook(memory)
    halved = plain.forward(rows)
    handle.remove()
    assert halved.mlp is None
    assert len(memory.passes) > 1


def test_an_id_past_the_embedding_is_named(encoder: Encoder) -> None:
    (row,) = _rows([6])
    row.ids[3] = 400
    with pytest.raises(RequestError, match="token id 400, but the embedding has 258 rows"):
        encoder.forward([row])


def test_several_layers_in_one_pass(tiny_llama: Path) -> None:
    encoder = _load(tiny_llama, 3, blocks_after=1)
    rows = _rows([14, 6])
    passes: list[int] = []
    handle = encoder.embedding.register_forward_hook(lambda *_args: passes.append(1))
    got = encoder.forward_layers(rows, encoder.neighbours)
    handle.remove()
    assert (len(passes), sorted(got)) == (1, [2, 3, 4])
    for layer, states in got.items():
        expected = torch.cat(
            [
                _full_model_streams(tiny_llama, row)[layer][torch.from_numpy(row.counted)]
                for row in rows
            ]
        )
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


class _Memory:
    """Runs out of memory when a forward pass has more padded tokens than fit."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.passes: list[tuple[int, ...]] = []

    def __call__(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.passes.append(tuple(inputs[0].shape))
        if inputs[0].numel() > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_batch_that_does_not_fit_is_halved_and_loses_nothing(encoder: Encoder) -> None:
    rows = _rows([20, 18, 20, 7, 20])
    whole = encoder.forward(rows)
    memory = _Memory(fits=40)
    handle = encoder.embedding.register_forward_pre_hook(memory)
    try:
        halved = encoder.forward(rows)
    finally:
        handle.remove()
    assert memory.passes == [(5, 20), (2, 20), (3, 20), (1, 20), (2, 20)]
    torch.testing.assert_close(halved.states, whole.states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(halved.mlp, whole.mlp, rtol=1e-4, atol=1e-5)
    assert halved.offsets.tolist() == whole.offsets.tolist()


def test_running_out_of_memory_after_the_layer_leaves_nothing_behind(encoder: Encoder) -> None:
    """A failure deep in the model: what hooks had kept by then must not reach the next batch."""
    rows = _rows([20, 18])
    expected = encoder.forward(rows).states
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def fail_once(*_args: Any) -> None:
        if failures:
            raise failures.pop()

    handle = encoder.backbone.layers[-1].register_forward_hook(fail_once)
    try:
        got = encoder.forward(rows).states
    finally:
        handle.remove()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_one_sample_that_does_not_fit_is_named(encoder: Encoder) -> None:
    handle = encoder.embedding.register_forward_pre_hook(_Memory(fits=30))
    try:
        with pytest.raises(WorkError, match=r"one sample of 31 tokens.*max_length"):
            encoder.forward(_rows([10, 31, 8]))
    finally:
        handle.remove()


def test_any_other_failure_is_not_swallowed(encoder: Encoder) -> None:
    def broken(*_args: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    handle = encoder.embedding.register_forward_pre_hook(broken)
    try:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            encoder.forward(_rows([10, 8]))
    finally:
        handle.remove()


def test_layer_norm_is_told_from_rms_norm(encoder: Encoder) -> None:
    assert not encoder.uses_layer_norm


@pytest.mark.parametrize("layer", [0, 6, -6, 40])
def test_a_layer_outside_the_model_is_refused(tiny_llama: Path, layer: int) -> None:
    with pytest.raises(RequestError, match=rf"layer {layer} is outside the model: 1 to 5"):
        _load(tiny_llama, layer)


@given(blocks=st.integers(1, 100), data=st.data())
def test_negative_layers_count_from_the_end(blocks: int, data: st.DataObject) -> None:
    absolute = data.draw(st.integers(1, blocks))
    assert absolute_layer(absolute, blocks) == absolute
    # hidden_states has blocks + 1 entries.
    assert absolute_layer(absolute - (blocks + 1), blocks) == absolute


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_a_nan_weight_is_named_at_load(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkError, match=r"layers\.2\.mlp\.up_proj\.weight"):
        _load(copied)


def test_a_missing_weight_is_refused_not_invented(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"no weights.*layers\.1\.self_attn\.q_proj\.weight"):
        _load(copied)


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(RequestError, match="model"):
        _load(copied)


@pytest.mark.parametrize("keep", [0, 100, 5_000])
def test_truncated_weights_are_refused(copied: Path, keep: int) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RequestError, match=r"model\.safetensors is damaged"):
        _load(copied)


def test_a_config_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text("{oops")
    with pytest.raises(RequestError, match="model"):
        _load(copied)


def test_cuda_is_refused_where_there_is_none(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="no CUDA device"):
        _load(tiny_llama, device="cuda")


def test_bfloat16_stays_near_float32(tiny_llama: Path, encoder: Encoder) -> None:
    rows = _rows([30, 12])
    low = _load(tiny_llama, dtype="bfloat16").forward(rows).states
    assert low.dtype == torch.bfloat16
    exact = encoder.forward(rows).states
    error = (low.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.05


@given(
    lengths=st.lists(st.integers(0, 3000), max_size=60),
    max_tokens=st.integers(1, 4000),
)
def test_plan_covers_each_row_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    plan = plan_batches(lengths, max_tokens)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    for batch in plan:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1
    flat = [lengths[i] for batch in plan for i in batch]
    assert flat == sorted(lengths, reverse=True)


def test_plan_breaks_ties_by_index_and_fills_to_the_brim() -> None:
    assert plan_batches([5, 9, 5, 5, 9, 100], 18) == [[5], [1, 4], [0, 2, 3]]
    assert plan_batches([], 18) == []


@pytest.mark.model
def test_smollm2_streams_are_those_of_the_full_model(smollm2: Path) -> None:
    encoder = _load(smollm2, blocks_after=1, mlp=True)
    assert (encoder.layer, encoder.width, encoder.mlp_width) == (29, 576, 1536)
    conversations = [
        [Message("user", "Name a bird."), Message("assistant", "The dipper walks under water.")],
        [Message("user", "How far is it? " * 20), Message("assistant", "Two hours on foot.")],
        [Message("user", "Quelle heure est-il ?")],
    ]
    rows = encoder.renderer.render_batch(conversations)
    made = _slices(encoder.forward(rows))
    last = encoder.forward_layers(rows, [30])[30]
    first = 0
    for row, got in zip(rows, made, strict=True):
        streams = _full_model_streams(smollm2, row)
        counted = torch.from_numpy(row.counted)
        # Streams are about 700 long; float32 in another order of sums.
        torch.testing.assert_close(got, streams[-2][counted], rtol=1e-4, atol=2e-2)
        torch.testing.assert_close(
            last[first : first + len(got)], streams[-1][counted], rtol=1e-4, atol=2e-2
        )
        first += len(got)
