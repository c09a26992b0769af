"""Our C functions called with tensors; and products of float32 matrices in bfloat16, by one of them.

bfloat16 is how training is told to be quick, by torch.autocast: what is outside it (evaluation,
sampling) is float32. Sums, states and gradients are float32 always. Knows no cell and no layer.

Shapes: N and G rows, K what is summed over.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from gru_lm.model.native import build
from gru_lm.model.native.build import library


def call(name: str, *arguments: int | Tensor | None, bf16: bool = False) -> None:
    """Call a kernel: sizes as size_t, tensors as their addresses, and PyTorch's threads.

    `bf16` calls its twin whose products are in bfloat16.
    """
    converted = [
        ctypes.c_size_t(each)
        if isinstance(each, int)
        else ctypes.c_void_p(None if each is None else each.data_ptr())
        for each in arguments
    ]
    getattr(library(), f"{name}_bf16" if bf16 else name)(
        *converted, ctypes.c_int(torch.get_num_threads())
    )


@cache
def bf16_available() -> bool:
    """Whether there are kernels in bfloat16: whether the processor has AVX512_BF16."""
    return build.available() and bool(library().has_bf16())


def bf16_wanted() -> bool:
    """Whether products are to be in bfloat16 here and now, and can be."""
    wanted = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return wanted and bf16_available()


def factors_of(x: Tensor, bf16: bool) -> Tensor:
    """Where a kernel keeps what it multiplies of `x`: rounded, in a tensor of its own, or `x` itself."""
    return torch.empty_like(x, dtype=torch.bfloat16) if bf16 else x


def bf16_product(
    a_NK: Tensor, b_GK: Tensor, bias_G: Tensor | None = None, *, add_to: Tensor | None = None
) -> Tensor:
    """A Bᵀ + bias [N, G] of float32 matrices rounded to bfloat16; `add_to` [N, G] grows by it."""
    (N, K), G = a_NK.shape, len(b_GK)
    a_NK, b_GK = (x if 1 in x.stride() else x.contiguous() for x in (a_NK, b_GK))
    out = a_NK.new_empty(N, G) if add_to is None else add_to
    bias_G = None if bias_G is None else bias_G.contiguous()
    assert out.is_contiguous()
    if N and G:
        packed = a_NK.new_empty(library().product_scratch_bf16(*map(ctypes.c_size_t, (N, G))))
        sizes = (int(add_to is not None), N, G, K)
        factors: tuple[int | Tensor, ...] = (a_NK, *a_NK.stride(), b_GK, *b_GK.stride())
        call("product", *sizes, *factors, bias_G, out, packed, bf16=True)
    return out
