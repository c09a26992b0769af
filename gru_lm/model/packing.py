"""Layers of torch.nn over rows in which sequences follow each other.

torch.nn cannot reset a state within a row. Each row is therefore cut where a sequence starts, and the
parts run side by side as a packed sequence: the first part of a row from its given state, the others
from zero. Knows no cells and no equations.

Shapes: T time, B batch, D input, H hidden, S states of a cell, N = T B positions, P parts, by decreasing
length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def run(
    layer: nn.RNNBase, x_TBD: Tensor, state_SBH: Tensor, starts_TB: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs [T, B, H] and the state after the last step [S, B, H].

    `starts_TB` marks the steps after the first that start from a zero state. On the CPU it costs no
    synchronization.
    """
    device, (T, B) = x_TBD.device, starts_TB.shape
    parts = _Parts.of(starts_TB.cpu())
    order_N, place_N = parts.order_N.to(device), parts.order_N.argsort().to(device)
    first_B, last_B = parts.first_B.to(device), parts.last_B.to(device)
    x = PackedSequence(x_TBD.flatten(0, 1).index_select(0, order_N), parts.sizes_T)
    zeros_SPH = state_SBH.new_zeros(len(state_SBH), parts.count, state_SBH.shape[2])
    state_SPH = zeros_SPH.index_copy(1, first_B, state_SBH)
    if isinstance(layer, nn.LSTM):
        out, (h, c) = layer(x, (state_SPH[:1], state_SPH[1:]))
        after_SPH = torch.cat((h, c))
    else:
        out, after_SPH = layer(x, state_SPH)
    out_TBH = out.data.index_select(0, place_N).view(T, B, -1)
    return out_TBH, after_SPH.index_select(1, last_B)


@dataclass(frozen=True)
class _Parts:
    """Where the parts of the rows lie in a packed sequence."""

    count: int
    order_N: Tensor  # the position in [T, B] of each position of the packed sequence
    sizes_T: Tensor  # the number of parts with more than t steps
    first_B: Tensor  # the number of each row's first part
    last_B: Tensor  # and of its last

    @classmethod
    def of(cls, starts_TB: Tensor) -> _Parts:
        """The parts of rows cut at `starts_TB`, and at the first step."""
        T, B = starts_TB.shape
        starts_BT = starts_TB.t().clone()
        starts_BT[:, 0] = True
        part_BT = starts_BT.flatten().cumsum(0).view(B, T) - 1
        lengths_P = part_BT.flatten().bincount()
        number_P = lengths_P.argsort(descending=True, stable=True).argsort()
        time_T = torch.arange(T)
        within_BT = time_T - torch.where(starts_BT, time_T, 0).cummax(1).values
        count = len(lengths_P)
        key_TB = (within_BT * count + number_P[part_BT]).t()
        return cls(
            count=count,
            order_N=key_TB.flatten().argsort(),
            sizes_T=within_BT.flatten().bincount(),
            first_B=number_P[part_BT[:, 0]],
            last_B=number_P[part_BT[:, -1]],
        )
