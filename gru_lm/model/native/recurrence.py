"""The cells over time by the C kernels, as differentiable functions on float32 CPU tensors.

The kernels run the sequential steps; the input projection and, in the backward pass, the gradient of the
recurrent weights are one product over all steps each. If the forward pass runs under bfloat16 autocast,
the products of both passes are in bfloat16. Hidden sizes are padded to whole processor vectors with
units that stay zero.

Shapes: T time, B batch, H hidden, G gates x H, S states of a cell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from gru_lm.model import products
from gru_lm.model.cells import GRU, LSTM, RNN, GRUBefore, LSTMThread
from gru_lm.model.native.build import library
from gru_lm.model.native.kernels import bf16_enabled, bf16_product, call, factors_of
from gru_lm.model.products import linear

NativeCell = GRU | GRUBefore | LSTM | LSTMThread | RNN


def run(
    cell: NativeCell,
    x_TBD: Tensor,
    state_SBH: Tensor,
    rows_TB: Tensor | None = None,
    starts_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of a layer [T, B, H] and the state after the last step [S, B, H].

    With `rows_TB`, step t of stream b reads row rows_TB[t, b] of a table x [V, D], whose input
    projection is computed once per row. `starts_TB` marks the steps after the first that start from a
    zero state.
    """
    H, gates = cell.width, len(cell.gates)
    padding = -H % library().recurrence_units()
    bias, inner_bias = cell.bias_ih_l0, []
    if isinstance(cell, RNN | LSTM):
        bias = bias + cell.bias_hh_l0
    elif isinstance(cell, GRU):
        u_r, u_z, inner = cell.bias_hh_l0.chunk(3)
        bias = bias + torch.cat((u_r, u_z, torch.zeros_like(inner)))
        inner_bias = [_pad(inner, padding)]
    W = _pad_rows(cell.weight_ih_l0, gates, padding)
    x_TBG = linear(x_TBD, W, _pad_rows(bias, gates, padding), outer=_outer)
    if rows_TB is not None:
        x_TBG = embedding(rows_TB, x_TBG)
    U = _pad(_pad_rows(cell.weight_hh_l0, gates, padding), padding)
    ends_TB = None if starts_TB is None else pad(starts_TB[1:], (0, 0, 0, 1)).contiguous()
    steps = STEPS[type(cell)].apply
    states = _pad(state_SBH, padding).unbind()
    hs, *rest = steps(x_TBG, U, ends_TB, *states, *inner_bias)  # type: ignore[no-untyped-call]
    if padding:  # even a full slice would cost a copy of its gradient
        hs, rest = hs[..., :H], [state[..., :H] for state in rest]
    return hs, torch.stack((hs[-1], *rest))


def _pad(x: Tensor, padding: int) -> Tensor:
    """`x` padded with zeros in its last dimension; not copied if `padding` is 0."""
    return pad(x, (0, padding)) if padding else x


def _pad_rows(weights: Tensor, gates: int, padding: int) -> Tensor:
    """Each gate's block of rows [H, ...] padded with zeros to [H + padding, ...]."""
    if not padding:
        return weights
    blocks = weights.reshape(gates, -1, *weights.shape[1:])
    return pad(blocks, (0, 0) * (weights.ndim - 1) + (0, padding)).flatten(0, 1)


def _outer(dy_NG: Tensor, x_ND: Tensor, bf16: bool = False) -> Tensor:
    """Gradient of weights [G, D]: the sum over rows of dy ⊗ x."""
    if bf16:
        return bf16_product(dy_NG.t(), x_ND.t())
    (N, G), D = dy_NG.shape, x_ND.shape[1]
    units = library().recurrence_units()
    if G % units or D % units or dy_NG.stride(1) != 1:
        return products.outer(dy_NG, x_ND)
    x_ND, out = x_ND.contiguous(), x_ND.new_empty(G, D)
    packed = x_ND.new_empty(library().outer_product_depth() * D)
    call("outer_product", N, G, D, dy_NG, dy_NG.stride(0), x_ND, out, packed)
    return out


def _outputs(hs: Tensor, ends_TB: Tensor | None) -> Tensor | None:
    """The array for the outputs [T, B, H]; None if they are the states hs[1:]."""
    return None if ends_TB is None else torch.empty_like(hs[1:])


# In the functions below, hs [T+1, B, H] are the states from which the steps start, and the last state;
# ends_TB marks the steps after which the next one starts from zero. The outputs are hs[1:] or, with
# ends_TB, another array, ys.


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBG: Tensor, U: Tensor, ends_TB: Tensor | None, h_BH: Tensor, bias: Tensor
    ) -> tuple[Tensor]:
        T, B, G = x_TBG.shape
        H = G // 3
        x_TBG, U, bias = x_TBG.contiguous(), U.contiguous(), bias.contiguous()
        hs = x_TBG.new_empty(T + 1, B, H)
        hs[0] = h_BH
        training = any(ctx.needs_input_grad)
        gates = torch.empty_like(x_TBG) if training else None
        inner = x_TBG.new_empty(T, B, H) if training else None
        ctx.bf16 = bf16_enabled()
        inputs, packed = (x_TBG, U, bias, hs, factors_of(hs, ctx.bf16)), x_TBG.new_empty(3 * H * H)
        ys = _outputs(hs, ends_TB)
        call("gru_forward", T, B, H, *inputs, ends_TB, ys, gates, inner, packed, bf16=ctx.bf16)
        if training:
            ctx.save_for_backward(U, hs, ends_TB, gates, inner)
        return (hs[1:] if ys is None else ys,)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        U, hs, ends_TB, gates, inner = ctx.saved_tensors
        T, B, H = inner.shape
        dh, dx, dinner = dy.new_zeros(B, H), torch.empty_like(gates), torch.empty_like(inner)
        packed = dy.new_empty(3 * H * H)
        dy = dy.contiguous()
        outputs = (dh, dx, factors_of(dx, ctx.bf16), dinner, factors_of(dinner, ctx.bf16))
        inputs = (dy, U, hs, ends_TB, gates, inner)
        call("gru_backward", T, B, H, *inputs, *outputs, packed, bf16=ctx.bf16)
        h_NH, dx_NG, dinner_NH = hs[:-1].flatten(0, 1), dx.flatten(0, 1), dinner.flatten(0, 1)
        dU_rz = _outer(dx_NG[:, : 2 * H], h_NH, ctx.bf16)
        dU = torch.cat((dU_rz, _outer(dinner_NH, h_NH, ctx.bf16)))
        return dx, dU, None, dh, dinner_NH.sum(0)


class _GRUBefore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBG: Tensor, U: Tensor, ends_TB: Tensor | None, h_BH: Tensor
    ) -> tuple[Tensor]:
        T, B, G = x_TBG.shape
        H = G // 3
        x_TBG, U = x_TBG.contiguous(), U.contiguous()
        hs = x_TBG.new_empty(T + 1, B, H)
        hs[0] = h_BH
        gates, reset = torch.empty_like(x_TBG), x_TBG.new_empty(T, B, H)
        packed = x_TBG.new_empty(3 * H * H)
        ctx.bf16 = bf16_enabled()
        ys = _outputs(hs, ends_TB)
        states = (hs, factors_of(hs, ctx.bf16), ends_TB, ys)
        saved = (gates, reset, factors_of(reset, ctx.bf16))
        call("before_forward", T, B, H, x_TBG, U, *states, *saved, packed, bf16=ctx.bf16)
        ctx.save_for_backward(U, hs, ends_TB, gates, reset)
        return (hs[1:] if ys is None else ys,)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        U, hs, ends_TB, gates, reset = ctx.saved_tensors
        T, B, H = reset.shape
        dh, dreset, dx = dy.new_zeros(B, H), dy.new_empty(B, H), torch.empty_like(gates)
        packed = dy.new_empty(3 * H * H)
        dy = dy.contiguous()
        outputs = (dh, dx, factors_of(dx, ctx.bf16), dreset)
        inputs = (dy, U, hs, ends_TB, gates)
        call("before_backward", T, B, H, *inputs, *outputs, packed, bf16=ctx.bf16)
        dx_NG = dx.flatten(0, 1)
        h_NH, reset_NH = hs[:-1].flatten(0, 1), reset.flatten(0, 1)
        dU_ur = _outer(dx_NG[:, : 2 * H], h_NH, ctx.bf16)
        dU = torch.cat((dU_ur, _outer(dx_NG[:, 2 * H :], reset_NH, ctx.bf16)))
        return dx, dU, None, dh


class _LSTM(torch.autograd.Function):
    plain = 0  # the output is o⊙tanh(c)

    @classmethod
    def forward(
        cls,
        ctx: Any,
        x_TBG: Tensor,
        U: Tensor,
        ends_TB: Tensor | None,
        h_BH: Tensor,
        c_BH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        T, B, G = x_TBG.shape
        H = G // 4
        x_TBG, U = x_TBG.contiguous(), U.contiguous()
        hs, cs = x_TBG.new_empty(T + 1, B, H), x_TBG.new_empty(T + 1, B, H)
        hs[0], cs[0] = h_BH, c_BH
        gates, packed = torch.empty_like(x_TBG), x_TBG.new_empty(4 * H * H)
        ctx.bf16 = bf16_enabled()
        ys = _outputs(hs, ends_TB)
        outputs = (hs, factors_of(hs, ctx.bf16), ends_TB, ys, cs, gates)
        call("lstm_forward", cls.plain, T, B, H, x_TBG, U, *outputs, packed, bf16=ctx.bf16)
        ctx.save_for_backward(U, hs, cs, ends_TB, gates)
        return hs[1:] if ys is None else ys, cs[-1].clone()

    @classmethod
    def backward(cls, ctx: Any, dy: Tensor, dc_last: Tensor) -> tuple[Tensor | None, ...]:
        U, hs, cs, ends_TB, gates = ctx.saved_tensors
        T, B, G = gates.shape
        H = G // 4
        dh, dc, dx = dy.new_zeros(B, H), dc_last.clone(), torch.empty_like(gates)
        dy, packed = dy.contiguous(), dy.new_empty(4 * H * H)
        inputs, outputs = (dy, U, cs, ends_TB, gates), (dh, dc, dx, factors_of(dx, ctx.bf16))
        call("lstm_backward", cls.plain, T, B, H, *inputs, *outputs, packed, bf16=ctx.bf16)
        return dx, _outer(dx.flatten(0, 1), hs[:-1].flatten(0, 1), ctx.bf16), None, dh, dc


class _LSTMThread(_LSTM):
    plain = 1  # the output is o⊙c


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBG: Tensor, U: Tensor, ends_TB: Tensor | None, h_BH: Tensor
    ) -> tuple[Tensor]:
        T, B, H = x_TBG.shape
        x_TBG, U = x_TBG.contiguous(), U.contiguous()
        hs, packed = x_TBG.new_empty(T + 1, B, H), x_TBG.new_empty(H * H)
        hs[0] = h_BH
        ctx.bf16 = bf16_enabled()
        ys = _outputs(hs, ends_TB)
        outputs = (hs, factors_of(hs, ctx.bf16), ends_TB, ys)
        call("rnn_forward", T, B, H, x_TBG, U, *outputs, packed, bf16=ctx.bf16)
        ctx.save_for_backward(U, hs, ends_TB, ys)
        return (hs[1:] if ys is None else ys,)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        U, hs, ends_TB, ys = ctx.saved_tensors
        T, B, H = dy.shape
        dh, dx, packed = dy.new_zeros(B, H), dy.new_empty(T, B, H), dy.new_empty(H * H)
        dy = dy.contiguous()
        inputs = (dy, U, hs[1:] if ys is None else ys, ends_TB)
        outputs = (dh, dx, factors_of(dx, ctx.bf16))
        call("rnn_backward", T, B, H, *inputs, *outputs, packed, bf16=ctx.bf16)
        return dx, _outer(dx.flatten(0, 1), hs[:-1].flatten(0, 1), ctx.bf16), None, dh


STEPS: dict[type[NativeCell], type[torch.autograd.Function]] = {
    GRU: _GRU,
    GRUBefore: _GRUBefore,
    LSTM: _LSTM,
    LSTMThread: _LSTMThread,
    RNN: _RNN,
}
