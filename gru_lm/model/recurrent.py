"""A stack of recurrent layers over time, and the only place that dispatches to a backend.

The backend is fixed at construction. "native" runs the cells by our C kernels on a CPU; "fused" uses
torch.nn for the layers it has (cuDNN on CUDA, oneDNN or PyTorch's own loop on a CPU) and hoisted.py for
gru-before on a CPU; "reference" is the readable loop over `Cell.step`. Invariant: all backends compute
the same function. Independent of tokens and losses.

Shapes: T time, B batch, D input, H hidden, L layers, S states of a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from gru_lm.errors import unknown_name
from gru_lm.model import hoisted, packing
from gru_lm.model.cells import CELLS, GRU, LSTM, RNN, Cell, GRUBefore, LSTMThread
from gru_lm.model.products import in_bf16
from gru_lm.model.regularize import Regularization, dropout, recurrent_weights_dropped

NATIVE = GRU | GRUBefore | LSTM | LSTMThread | RNN  # cells with a C kernel
BACKENDS = ("native", "fused", "reference")


class Recurrent(nn.Module):
    """L layers of one cell type, with dropout between layers and DropConnect within.

    Raises UsageError for an unknown backend.
    """

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
        starts_TB: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the last layer's outputs [T, B, H] and the state after the last step [L, S, B, H].

        With residual connections (He et al. 2016), each layer after the first adds its input to its
        output.

        With `rows_TB` the input is a table [V, D] and each step reads one row of it, so that the first
        layer's input product is computed once per row instead of once per token. Dropout masks are
        drawn from `noise`; without it nothing is dropped.

        `starts_TB` (bool, preferably on the CPU) marks the steps at which a sequence starts: the
        states before them are zero.
        """
        final, regularization = [], self.regularization
        if starts_TB is not None:
            first_B1 = starts_TB[0, :, None].to(state_LSBH.device)
            state_LSBH = state_LSBH.masked_fill(first_B1, 0)
            starts_TB = starts_TB if len(starts_TB) > 1 else None
        for layer, cell in enumerate(self.layers):
            skip = x_TBD
            if layer > 0:
                x_TBD = dropout(x_TBD, regularization.dropout, noise, locked=regularization.locked)
            with recurrent_weights_dropped(cell, regularization.weight_drop, noise):
                x_TBD, state_SBH = _run(
                    cell, x_TBD, state_LSBH[layer], self.backend, rows_TB, starts_TB
                )
            if layer > 0 and self.residual:
                x_TBD = skip + x_TBD
            rows_TB = None
            final.append(state_SBH)
        return x_TBD, torch.stack(final).to(state_LSBH.dtype)


def _run(
    cell: nn.Module,
    x_TBD: Tensor,
    state_SBH: Tensor,
    backend: str,
    rows_TB: Tensor | None,
    starts_TB: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run one layer over all steps: outputs [T, B, H] and the final state [S, B, H].

    `starts_TB` marks the steps after the first that start from a zero state.
    """
    steps = len(x_TBD if rows_TB is None else rows_TB)
    # oneDNN's LSTM is slightly faster than ours in float32, but can neither read from a table nor reset.
    plain = rows_TB is None and starts_TB is None
    onednn = isinstance(cell, LSTM) and plain and not in_bf16(x_TBD)
    if backend == "native" and isinstance(cell, NATIVE) and not onednn and _supported(x_TBD, steps):
        from gru_lm.model.native import recurrence

        return recurrence.run(cell, x_TBD, state_SBH, rows_TB, starts_TB)
    if rows_TB is not None:
        x_TBD = embedding(rows_TB, x_TBD)
    if backend != "reference" and isinstance(cell, nn.RNNBase):
        if starts_TB is not None:
            return packing.run(cell, x_TBD, state_SBH, starts_TB)
        if isinstance(cell, LSTM):
            out_TBH, (h, c) = cell(x_TBD, (state_SBH[:1].contiguous(), state_SBH[1:].contiguous()))
            return out_TBH, torch.cat((h, c))
        return cell(x_TBD, state_SBH.contiguous())  # type: ignore[no-any-return]
    if backend != "reference" and isinstance(cell, GRUBefore) and x_TBD.device.type == "cpu":
        out_TBH = hoisted.run(cell, x_TBD, state_SBH[0], starts_TB)
        return out_TBH, out_TBH[-1:]
    assert isinstance(cell, Cell)
    state = state_SBH.unbind()
    starts_TB1 = None if starts_TB is None else starts_TB[..., None].to(x_TBD.device)
    outputs = []
    for t, x_BG in enumerate(cell.project(x_TBD)):
        if starts_TB1 is not None and t:
            state = tuple(each.masked_fill(starts_TB1[t], 0) for each in state)
        state = cell.step(x_BG, state)
        outputs.append(state[0])
    return torch.stack(outputs), torch.stack(state)


def _supported(x: Tensor, steps: int) -> bool:
    """Whether the kernels take this input: float32, and enough steps to be worth packing the weights."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and (steps > 1 or in_bf16(x))
