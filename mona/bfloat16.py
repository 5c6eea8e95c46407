"""bfloat16 matrix products on a CPU that has no instructions for them.

torch's own kernels there are many times slower than its float32 ones. Such instructions multiply
bfloat16 operands exactly, add in float32 and round the sum; float32 products of the same
operands, rounded, are the same and nearly as fast as float32's. Where bfloat16 is fast is
`mona.device`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mona.device import multiplies_bfloat16

_aten = torch.ops.aten
_attention = _aten._scaled_dot_product_flash_attention_for_cpu.default
_attention_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default
# Without autograd torch asks for the last three whole, not for what they are made of.
_PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _attention,
    _attention_backward,
    _aten.linear.default,
    _aten.matmul.default,
    _aten.scaled_dot_product_attention.default,
}


def bfloat16_products(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context in which this thread's bfloat16 products on a CPU are made through float32.

    Results are bfloat16, as without it. Nothing changes where `dtype`, the weights', is another,
    or the `device` ('cpu' or 'cuda') multiplies it fast itself.
    """
    if dtype != torch.bfloat16 or multiplies_bfloat16(device):
        return nullcontext()
    return _ThroughFloat32()


class _ThroughFloat32(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        found = func(*map(_up, args), **{name: _up(given) for name, given in kwargs.items()})
        if func is _attention:  # its second result is the softmax's scale, float32 always
            return found[0].bfloat16(), found[1]
        if func is _attention_backward:
            return tuple(gradient.bfloat16() for gradient in found)
        return found.bfloat16()


def _up(given: Any) -> Any:
    return given.float() if isinstance(given, Tensor) and given.dtype == torch.bfloat16 else given
