"""`gru` and `gru-before` over time by the C kernels, differentiable. float32 on a CPU alone.

The input projection is the caller's (one product for all steps); here are the steps themselves, and
on the way back the gradient of the recurrent weights as one product. Hidden sizes that do not fill the
processor's vectors are padded with units that stay zero.

Shapes: T time, B batch, H hidden, G = 3H gates, P = H padded.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from gru_lm.model.cells import GRU, GRUBefore
from gru_lm.model.native.build import library


def run(cell: GRU | GRUBefore, x_TBD: Tensor, h_BH: Tensor) -> Tensor:
    """The outputs of a layer from the state h_BH on, [T, B, H]."""
    H = cell.width
    more = -H % library().recurrence_units()
    bias, inner = cell.bias_ih_l0, None
    if isinstance(cell, GRU):
        u_r, u_z, inner = cell.bias_hh_l0.chunk(3)
        bias = bias + torch.cat((u_r, u_z, torch.zeros_like(inner)))
        inner = pad(inner, (0, more))
    x_TBG = linear(x_TBD, _pad_rows(cell.weight_ih_l0, more), _pad_rows(bias, more))
    U = pad(_pad_rows(cell.weight_hh_l0, more), (0, more))
    h_BH = pad(h_BH, (0, more))
    steps, given = (_GRUBefore, ()) if inner is None else (_GRU, (inner,))
    hs: Tensor = steps.apply(x_TBG, U, h_BH, *given)  # type: ignore[no-untyped-call]
    return hs[..., :H]


def _pad_rows(weights: Tensor, more: int) -> Tensor:
    """Each gate's block of rows [H, ...] made [H + more, ...] with zeros."""
    if not more:
        return weights
    blocks = weights.reshape(3, -1, *weights.shape[1:])
    return pad(blocks, (0, 0) * (weights.ndim - 1) + (0, more)).flatten(0, 1)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TBG: Tensor, U: Tensor, h_BH: Tensor, bias: Tensor) -> Tensor:
        T, B, G = x_TBG.shape
        H = G // 3
        x_TBG, U, bias = x_TBG.contiguous(), U.contiguous(), bias.contiguous()
        hs = x_TBG.new_empty(T + 1, B, H)
        hs[0] = h_BH
        kept = any(ctx.needs_input_grad)
        gates = torch.empty_like(x_TBG) if kept else None
        inner = x_TBG.new_empty(T, B, H) if kept else None
        _call("gru_forward", T, B, H, x_TBG, U, bias, hs, gates, inner, x_TBG.new_empty(3 * H * H))
        if kept:
            ctx.save_for_backward(U, hs, gates, inner)
        return hs[1:]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        U, hs, gates, inner = ctx.saved_tensors
        T, B, H = inner.shape
        dh, dx, dinner = dy.new_zeros(B, H), torch.empty_like(gates), torch.empty_like(inner)
        packed = dy.new_empty(3 * H * H)
        dy = dy.contiguous()
        _call("gru_backward", T, B, H, dy, U, hs, gates, inner, dh, dx, dinner, packed)
        before_NH, dx_NG, dinner_NH = hs[:-1].flatten(0, 1), dx.flatten(0, 1), dinner.flatten(0, 1)
        dU = torch.empty_like(U)
        torch.mm(dx_NG[:, : 2 * H].t(), before_NH, out=dU[: 2 * H])
        torch.mm(dinner_NH.t(), before_NH, out=dU[2 * H :])
        return dx, dU, dh, dinner_NH.sum(0)


class _GRUBefore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TBG: Tensor, U: Tensor, h_BH: Tensor) -> Tensor:
        T, B, G = x_TBG.shape
        H = G // 3
        x_TBG, U = x_TBG.contiguous(), U.contiguous()
        hs = x_TBG.new_empty(T + 1, B, H)
        hs[0] = h_BH
        gates, reset = torch.empty_like(x_TBG), x_TBG.new_empty(T, B, H)
        packed = x_TBG.new_empty(3 * H * H)
        _call("before_forward", T, B, H, x_TBG, U, hs, gates, reset, packed)
        ctx.save_for_backward(U, hs, gates, reset)
        return hs[1:]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        U, hs, gates, reset = ctx.saved_tensors
        T, B, H = reset.shape
        dh, dreset, dx = dy.new_zeros(B, H), dy.new_empty(B, H), torch.empty_like(gates)
        packed = dy.new_empty(3 * H * H)
        dy = dy.contiguous()
        _call("before_backward", T, B, H, dy, U, hs, gates, dh, dx, dreset, packed)
        dx_NG = dx.flatten(0, 1)
        dU = torch.empty_like(U)
        torch.mm(dx_NG[:, : 2 * H].t(), hs[:-1].flatten(0, 1), out=dU[: 2 * H])
        torch.mm(dx_NG[:, 2 * H :].t(), reset.flatten(0, 1), out=dU[2 * H :])
        return dx, dU, dh


def _call(name: str, *arguments: int | Tensor | None) -> None:
    """Call a kernel: sizes as size_t, tensors as their addresses, and PyTorch's threads."""
    converted = [
        ctypes.c_size_t(each)
        if isinstance(each, int)
        else ctypes.c_void_p(None if each is None else each.data_ptr())
        for each in arguments
    ]
    getattr(library(), name)(*converted, ctypes.c_int(torch.get_num_threads()))
