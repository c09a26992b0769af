"""`gru-before` over time in plain PyTorch, for CPUs without our kernels (torch.nn has no such layer).

Everything that is not sequential is hoisted out of the loop into one operation over all steps: input
products, gate derivatives, weight gradients. Autograd would compute them step by step.

Shapes: T time, B batch, D input, H hidden, G = 3H gates (u, r, c̃ as in cells.py), N = T B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gru_lm.model.cells import GRUBefore


def run(cell: GRUBefore, x_TBD: Tensor, h_BH: Tensor, starts_TB: Tensor | None = None) -> Tensor:
    """The outputs [T, B, H] of a layer started from state h_BH.

    `starts_TB` marks the steps after the first that start from a zero state.
    """
    x_TBG, U = cell.project(x_TBD), cell.weight_hh_l0
    ys: Tensor = _Steps.apply(x_TBG, U, h_BH, starts_TB)  # type: ignore[no-untyped-call]
    return ys


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBG: Tensor, U: Tensor, h_BH: Tensor, starts_TB: Tensor | None
    ) -> Tensor:
        T, B, G = x_TBG.shape
        H = G // 3
        x_ur, x_c = x_TBG[..., : 2 * H], x_TBG[..., 2 * H :]
        U_ur, U_c = U[: 2 * H], U[2 * H :]
        hs, gates = x_TBG.new_empty(T + 1, B, H), x_TBG.new_empty(T, B, 2 * H)
        reset, candidate = x_TBG.new_empty(T, B, H), x_TBG.new_empty(T, B, H)
        # The outputs are the states from which the next steps start, except before a start.
        ys = hs[1:] if starts_TB is None else torch.empty_like(hs[1:])
        hs[0] = h_BH
        for t in range(T):
            u, r = torch.addmm(x_ur[t], hs[t], U_ur.t(), out=gates[t]).sigmoid_().chunk(2, -1)
            torch.mul(r, hs[t], out=reset[t])
            torch.addmm(x_c[t], reset[t], U_c.t(), out=candidate[t]).tanh_()
            torch.lerp(hs[t], candidate[t], u, out=ys[t])
            if starts_TB is not None and t + 1 < T:
                hs[t + 1] = ys[t].masked_fill(starts_TB[t + 1, :, None], 0)
        ctx.save_for_backward(U, hs, gates, reset, candidate, starts_TB)
        return ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        U, hs, gates, reset, candidate, starts_TB = ctx.saved_tensors
        T, B, H = dy.shape
        U_ur, U_c = U[: 2 * H], U[2 * H :]
        h, (u, r) = hs[:-1], gates.chunk(2, -1)
        per_u, per_c = (candidate - h) * u * (1 - u), u * (1 - candidate.square())
        per_r, keep = h * r * (1 - r), 1 - u
        dx, dh = dy.new_empty(T, B, 3 * H), dy.new_zeros(B, H)
        for t in reversed(range(T)):
            if starts_TB is not None and t + 1 < T:
                dh = dh.masked_fill_(starts_TB[t + 1, :, None], 0)
            d = dh + dy[t]
            du, dr, dc = dx[t].chunk(3, -1)
            torch.mul(d, per_u[t], out=du)
            torch.mul(d, per_c[t], out=dc)
            dreset = dc @ U_c
            torch.mul(dreset, per_r[t], out=dr)
            dh = (d * keep[t]).addcmul_(dreset, r[t]).addmm_(dx[t, :, : 2 * H], U_ur)
        dx_NG = dx.flatten(0, 1)
        dU_ur = dx_NG[:, : 2 * H].t() @ h.flatten(0, 1)
        dU_c = dx_NG[:, 2 * H :].t() @ reset.flatten(0, 1)
        return dx, torch.cat((dU_ur, dU_c)), dh, None
