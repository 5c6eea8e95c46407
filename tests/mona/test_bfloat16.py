from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from mona import device
from mona.bfloat16 import bfloat16_products


class Recorder(TorchDispatchMode):
    """The dtypes of what torch itself multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(part in name for part in ("mm", "matmul", "linear", "scaled_dot_product")):
            self.seen.setdefault(name, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def cpu_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: frozenset({"avx2"}))


def _whole_numbers(*shape: int, seed: int) -> torch.Tensor:
    """Whole numbers up to 15: sums of their products are exact in float32, and mostly more
    than bfloat16 holds."""
    drawn = torch.randint(-15, 16, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16()


def test_a_product_is_the_exact_one_rounded_once_and_so_are_its_gradients() -> None:
    x, w, bias = (
        _whole_numbers(*shape, seed=seed).requires_grad_()
        for seed, shape in enumerate([(2, 5, 300), (7, 300), (7,)])
    )
    out = _whole_numbers(2, 5, 7, seed=3)
    with bfloat16_products("cpu", torch.bfloat16):
        got = linear(x, w, bias)
        got.backward(out)
    exact = x.double() @ w.double().T + bias.double()
    assert not torch.equal(exact, exact.bfloat16().double())
    torch.testing.assert_close(got, exact.bfloat16(), rtol=0, atol=0)
    rows, flat = out.double().flatten(0, 1), x.double().flatten(0, 1)
    assert x.grad is not None
    assert w.grad is not None
    torch.testing.assert_close(x.grad, (out.double() @ w.double()).bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(w.grad, (rows.T @ flat).bfloat16(), rtol=0, atol=0)


def test_attention_and_its_gradients_are_near_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    low = [
        torch.randn(2, 3, 20, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)
    ]
    exact = [given.detach().double().requires_grad_() for given in low]
    with bfloat16_products("cpu", torch.bfloat16):
        got = scaled_dot_product_attention(*low, is_causal=True)
        got.sum().backward()
    wanted = scaled_dot_product_attention(*exact, is_causal=True)
    wanted.sum().backward()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=1e-6)
    for ours, theirs in zip(low, exact, strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == torch.bfloat16
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("learning", [True, False])
def test_no_product_of_a_model_is_left_to_torchs_bfloat16(tiny_llama: Path, learning: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    ids = torch.arange(12).reshape(2, 6)

    def step() -> torch.Tensor:
        with torch.inference_mode(not learning):
            logits = model(input_ids=ids, use_cache=False).logits
        if learning:
            logits.float().logsumexp(-1).sum().backward()
        return logits.detach().float()

    with Recorder() as through, bfloat16_products("cpu", torch.bfloat16):
        got = step()
    assert set().union(*through.seen.values()) == {torch.float32}
    with Recorder() as own:
        theirs = step()
    assert set().union(*own.seen.values()) == {torch.bfloat16}
    assert own.seen.keys() == through.seen.keys()
    assert (got - theirs).norm() / theirs.norm() < 0.05


@pytest.mark.parametrize(
    ("on", "dtype", "flags"),
    [
        ("cpu", torch.float32, "avx2"),
        ("cuda", torch.bfloat16, "avx2"),
        ("cpu", torch.bfloat16, "avx512_bf16"),
        ("cpu", torch.bfloat16, "amx_bf16"),
    ],
)
def test_nothing_is_changed_where_products_are_fast(
    monkeypatch: pytest.MonkeyPatch, on: str, dtype: torch.dtype, flags: str
) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: frozenset({flags}))
    numbers = _whole_numbers(4, 4, seed=0).to(dtype)
    with Recorder() as recorder, bfloat16_products(on, dtype):
        numbers @ numbers
    assert recorder.seen == {"aten.mm.default": {numbers.dtype}}
