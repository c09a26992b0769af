"""W x + b of many rows, the product that most of training is made of, by the fastest library at hand.

On a CPU in float32 that is oneDNN, whose code is made for the processor that it finds; the BLAS that
torch.nn.functional.linear calls instead (Intel's) gives other makers' processors older code. Under
autocast to bfloat16 it is our own kernel, which takes and gives float32. Everywhere else, and where this
PyTorch has no oneDNN, it is torch.nn.functional.linear.

Shapes: N rows (or several dimensions of them), D input, G output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gru_lm.model.native.kernels import bf16_product, bf16_wanted


def outer(dy_NG: Tensor, x_ND: Tensor) -> Tensor:
    """The gradient of the weights: the sum over the rows of dy times x, [G, D]."""
    return dy_NG.t() @ x_ND


def linear(
    x_ND: Tensor,
    weight_GD: Tensor,
    bias_G: Tensor | None = None,
    *,
    outer: Callable[[Tensor, Tensor], Tensor] = outer,
) -> Tensor:
    """W x + b, differentiable: [..., G]. `outer` computes the gradient of the weights in float32."""
    if _suits(x_ND) or in_bf16(x_ND):
        done: Tensor = _Linear.apply(x_ND, weight_GD, bias_G, outer)  # type: ignore[no-untyped-call]
        return done
    return functional.linear(x_ND, weight_GD, bias_G)


def product(x_ND: Tensor, weight_GD: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """W x + b, not differentiable: [..., G]."""
    if in_bf16(x_ND):
        return _bf16(x_ND, weight_GD, bias_G)
    if _suits(x_ND):
        return _onednn(x_ND, weight_GD, bias_G)
    return functional.linear(x_ND, weight_GD, bias_G)


def add_outer(sum_GD: Tensor, dy_NG: Tensor, x_ND: Tensor) -> None:
    """`sum_GD` grows by the gradient of the weights."""
    if in_bf16(x_ND):
        bf16_product(dy_NG.t(), x_ND.t(), add_to=sum_GD)
    else:
        sum_GD.addmm_(dy_NG.t(), x_ND)


def in_bf16(x: Tensor) -> bool:
    """Whether products with `x` are in bfloat16 here and now, though it is float32 and they are too."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and bf16_wanted()


def _suits(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and _available()


@cache
def _available() -> bool:
    """Whether this PyTorch's oneDNN does the product, found out by doing one."""
    x = torch.ones(2, 2)
    try:
        return bool(torch.equal(_onednn(x, x, x[0]), x + 2))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Made for PyTorch's own compiler; there is no public name for it. Activation: none.
    done: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return done


def _bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    done = bf16_product(x.reshape(-1, x.shape[-1]), weight, bias)
    return done.view(*x.shape[:-1], len(weight))


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
            turned_DG = weight_GD.t()
            dx = (
                _bf16(dy, turned_DG, None)
                if ctx.bf16
                else _onednn(dy, turned_DG.contiguous(), None)
            )
        if ctx.needs_input_grad[1]:
            dweight = (
                bf16_product(dy_NG.t(), rows_ND.t()) if ctx.bf16 else ctx.outer(dy_NG, rows_ND)
            )
        if ctx.needs_input_grad[2]:
            dbias = dy_NG.sum(0)
        return dx, dweight, dbias, None
