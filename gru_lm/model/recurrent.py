"""Runs a stack of cells over time; the one place that knows what does the arithmetic.

A backend is chosen once, before the first step, and kept: "native" runs the cells by our C kernels,
on a CPU; "fused" hands a layer to torch.nn where torch.nn has it (cuDNN on CUDA, oneDNN or PyTorch's
own loop on a CPU), and gru-before on a CPU to hoisted.py; "reference" is the readable loop over
`Cell.step`. All compute the same function. Knows nothing of tokens or losses.

Shapes: T time, B batch, D input, H hidden, L layers, S states of a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from gru_lm.errors import unknown_name
from gru_lm.model import hoisted
from gru_lm.model.cells import CELLS, GRU, LSTM, RNN, Cell, GRUBefore, LSTMThread
from gru_lm.model.products import in_bf16
from gru_lm.model.regularize import Regularization, dropout, recurrent_weights_dropped

NATIVE = GRU | GRUBefore | LSTM | LSTMThread | RNN  # the cells that our kernels run
BACKENDS = ("native", "fused", "reference")


class Recurrent(nn.Module):
    """L layers of one cell, regularised between them and within."""

    def __init__(
        self,
        cell: str,
        *,
        inputs: int,
        width: int,
        layers: int,
        backend: str,
        residual: bool = False,
        regularization: Regularization | None = None,
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise unknown_name("backend", backend, BACKENDS)
        self.layers = nn.ModuleList(
            CELLS[cell](inputs if layer == 0 else width, width) for layer in range(layers)
        )
        self.states = CELLS[cell].states
        self.residual = residual
        self.regularization = regularization or Regularization()
        self.backend = backend

    def forward(
        self,
        x_TBD: Tensor,
        state_LSBH: Tensor,
        noise: torch.Generator | None,
        rows_TB: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The outputs [T, B, H] and the state after the last step [L, S, B, H].

        They are the last layer's; residual (He et al. 2016), each layer but the first adds its outputs
        to what it reads, and they are the sum.

        With `rows_TB` the input is x [V, D], of which each step reads one row: a table that saves
        the first layer's product a step. What is dropped is drawn from `noise`; without it nothing is.
        """
        final, chosen = [], self.regularization
        for layer, cell in enumerate(self.layers):
            below = x_TBD
            if layer > 0:
                x_TBD = dropout(x_TBD, chosen.dropout, noise, locked=chosen.locked)
            with recurrent_weights_dropped(cell, chosen.weight_drop, noise):
                x_TBD, state_SBH = _run(cell, x_TBD, state_LSBH[layer], self.backend, rows_TB)
            if layer > 0 and self.residual:
                x_TBD = below + x_TBD
            rows_TB = None
            final.append(state_SBH)
        return x_TBD, torch.stack(final).to(state_LSBH.dtype)


def _run(
    cell: nn.Module, x_TBD: Tensor, state_SBH: Tensor, backend: str, rows_TB: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One layer over all steps: outputs [T, B, H], the state after the last [S, B, H]."""
    steps = len(x_TBD if rows_TB is None else rows_TB)
    # oneDNN's LSTM is a little faster than ours in float32, but cannot read from a table.
    theirs = isinstance(cell, LSTM) and rows_TB is None and not in_bf16(x_TBD)
    if backend == "native" and isinstance(cell, NATIVE) and not theirs and _suits(x_TBD, steps):
        from gru_lm.model.native import recurrence

        return recurrence.run(cell, x_TBD, state_SBH, rows_TB)
    if rows_TB is not None:
        x_TBD = embedding(rows_TB, x_TBD)
    if backend != "reference" and isinstance(cell, nn.RNNBase):
        if isinstance(cell, LSTM):
            out_TBH, (h, c) = cell(x_TBD, (state_SBH[:1].contiguous(), state_SBH[1:].contiguous()))
            return out_TBH, torch.cat((h, c))
        return cell(x_TBD, state_SBH.contiguous())  # type: ignore[no-any-return]
    if backend != "reference" and isinstance(cell, GRUBefore) and x_TBD.device.type == "cpu":
        out_TBH = hoisted.run(cell, x_TBD, state_SBH[0])
        return out_TBH, out_TBH[-1:]
    assert isinstance(cell, Cell)
    state = state_SBH.unbind()
    outputs = []
    for x_BG in cell.project(x_TBD):
        state = cell.step(x_BG, state)
        outputs.append(state[0])
    return torch.stack(outputs), torch.stack(state)


def _suits(x: Tensor, steps: int) -> bool:
    """Whether the kernels take this input: float32, and enough steps to pack the weights for."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and (steps > 1 or in_bf16(x))
