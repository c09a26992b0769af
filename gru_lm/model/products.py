"""Linear layers, W x + b over many rows, by the fastest available library.

In float32 on a CPU that is oneDNN, which generates code for the processor it runs on; the BLAS behind
torch.nn.functional.linear (Intel MKL) takes older code paths on other vendors' processors. Under
bfloat16 autocast on a CPU it is our own kernel, with float32 inputs and outputs. On other devices and
in PyTorch builds without oneDNN it is torch.nn.functional.linear.

Shapes: N rows (may be several dimensions), D input, G output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gru_lm.model.native.kernels import bf16_enabled, bf16_product


def outer(dy_NG: Tensor, x_ND: Tensor) -> Tensor:
    """Gradient of the weights [G, D]: the sum over rows of dy ⊗ x."""
    return dy_NG.t() @ x_ND


def linear(
    x_ND: Tensor,
    weight_GD: Tensor,
    bias_G: Tensor | None = None,
    *,
    outer: Callable[[Tensor, Tensor], Tensor] = outer,
) -> Tensor:
    """W x + b, [..., G], differentiable. `outer` computes the float32 gradient of the weights."""
    if _supported(x_ND) or in_bf16(x_ND):
        out: Tensor = _Linear.apply(x_ND, weight_GD, bias_G, outer)  # type: ignore[no-untyped-call]
        return out
    return functional.linear(x_ND, weight_GD, bias_G)


def product(x_ND: Tensor, weight_GD: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """W x + b, [..., G], not differentiable."""
    if in_bf16(x_ND):
        return _bf16(x_ND, weight_GD, bias_G)
    if _supported(x_ND):
        return _onednn(x_ND, weight_GD, bias_G)
    return functional.linear(x_ND, weight_GD, bias_G)


def add_outer(sum_GD: Tensor, dy_NG: Tensor, x_ND: Tensor) -> None:
    """Accumulate the gradient of the weights into `sum_GD`, in place."""
    if in_bf16(x_ND):
        bf16_product(dy_NG.t(), x_ND.t(), add_to=sum_GD)
    else:
        sum_GD.addmm_(dy_NG.t(), x_ND)


def in_bf16(x: Tensor) -> bool:
    """Whether products with the float32 tensor `x` currently run in bfloat16 (outputs stay float32)."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and bf16_enabled()


def _supported(x: Tensor) -> bool:
    """Whether oneDNN is used for `x`."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and _available()


@cache
def _available() -> bool:
    """Whether this PyTorch has the oneDNN product (tested by computing one)."""
    x = torch.ones(2, 2)
    try:
        return bool(torch.equal(_onednn(x, x, x[0]), x + 2))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # An operator of PyTorch's compiler, without a public name. "none": no activation.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = bf16_product(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_GD: Tensor,
        bias_G: Tensor | None,
        outer: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x_ND, weight_GD)
        ctx.outer, ctx.bf16 = outer, in_bf16(x_ND)
        return (_bf16 if ctx.bf16 else _onednn)(x_ND, weight_GD, bias_G)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_GD = ctx.saved_tensors
        dx = dweight = dbias = None
        dy_NG = dy.reshape(-1, dy.shape[-1])
        rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
        if ctx.needs_input_grad[0]:
            weight_DG = weight_GD.t()
            dx = (
                _bf16(dy, weight_DG, None)
                if ctx.bf16
                else _onednn(dy, weight_DG.contiguous(), None)
            )
        if ctx.needs_input_grad[1]:
            dweight = (
                bf16_product(dy_NG.t(), rows_ND.t()) if ctx.bf16 else ctx.outer(dy_NG, rows_ND)
            )
        if ctx.needs_input_grad[2]:
            dbias = dy_NG.sum(0)
        return dx, dweight, dbias, None
