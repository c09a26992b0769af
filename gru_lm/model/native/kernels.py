"""Calls C kernels with tensors; bfloat16 products of float32 matrices.

Training selects bfloat16 with torch.autocast; outside it (evaluation, sampling) everything is float32.
Accumulators, states and gradients are always float32. Knows no cells and no layers.

Shapes: N and G rows, K the dimension summed over.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from gru_lm.model.native import build
from gru_lm.model.native.build import library


def call(name: str, *arguments: int | Tensor | None, bf16: bool = False) -> None:
    """Call a kernel: sizes as size_t, tensors by address, then PyTorch's number of threads.

    `bf16` selects the variant with bfloat16 products.
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
    """Whether the bfloat16 kernels are available, which need a processor with AVX512_BF16."""
    return build.available() and bool(library().has_bf16())


def bf16_enabled() -> bool:
    """Whether bfloat16 autocast is enabled on the CPU and the kernels are available."""
    enabled = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return enabled and bf16_available()


def factors_of(x: Tensor, bf16: bool) -> Tensor:
    """The buffer for a kernel's factors of `x`: an empty bfloat16 tensor, or `x` itself in float32."""
    return torch.empty_like(x, dtype=torch.bfloat16) if bf16 else x


def bf16_product(
    a_NK: Tensor, b_GK: Tensor, bias_G: Tensor | None = None, *, add_to: Tensor | None = None
) -> Tensor:
    """A Bᵀ + bias, [N, G] in float32, of matrices rounded to bfloat16.

    With `add_to` [N, G] the product is accumulated into it, in place.
    """
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
