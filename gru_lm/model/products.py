"""W x + b of many rows, the product that most of training is made of, by the fastest library at hand.

On a CPU in float32 that is oneDNN, whose code is made for the processor that it finds; the BLAS that
torch.nn.functional.linear calls instead (Intel's) gives other makers' processors older code. Everywhere
else, and where this PyTorch has no oneDNN, it is torch.nn.functional.linear.

Shapes: N rows (or several dimensions of them), D input, G output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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
    """W x + b, differentiable: [..., G]. `outer` computes the gradient of the weights."""
    if _suits(x_ND):
        done: Tensor = _Linear.apply(x_ND, weight_GD, bias_G, outer)  # type: ignore[no-untyped-call]
        return done
    return functional.linear(x_ND, weight_GD, bias_G)


def product(x_ND: Tensor, weight_GD: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """W x + b, not differentiable: [..., G]."""
    if _suits(x_ND):
        return _onednn(x_ND, weight_GD, bias_G)
    return functional.linear(x_ND, weight_GD, bias_G)


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
        ctx.outer = outer
        return _onednn(x_ND, weight_GD, bias_G)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_GD = ctx.saved_tensors
        dx = dweight = dbias = None
        dy_NG = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[0]:
            dx = _onednn(dy, weight_GD.t().contiguous(), None)
        if ctx.needs_input_grad[1]:
            dweight = ctx.outer(dy_NG, x_ND.reshape(-1, x_ND.shape[-1]))
        if ctx.needs_input_grad[2]:
            dbias = dy_NG.sum(0)
        return dx, dweight, dbias, None
