"""Regularization against overfitting: dropout, DropConnect and penalties on activations.

All masks are drawn from an explicit generator, `noise`; without it nothing is dropped, and evaluation is
deterministic. Kept values are scaled up, which preserves expectations. Independent of the cells'
equations, the softmax and the optimizer.

Shapes: T time, B batch, H hidden, G gates x H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from gru_lm.errors import UsageError
from gru_lm.model.options import RegularizationOptions


@dataclass(frozen=True, kw_only=True)
class Regularization(RegularizationOptions):
    """Regularization during training. Raises UsageError if a value is out of range."""

    def __post_init__(self) -> None:
        if self.output_dropout is None:
            object.__setattr__(self, "output_dropout", self.dropout)
        for field in fields(self):
            value = getattr(self, field.name)
            limit = math.inf if field.name in ("ar", "tar", "locked") else 1
            if not 0 <= value < limit:  # also rejects NaN
                raise UsageError(f"{field.name} must be in [0, {limit}), not {value}")


def dropout(
    x_TBH: Tensor, probability: float, noise: torch.Generator | None, *, locked: bool = False
) -> Tensor:
    """Drop units of `x`; if `locked`, the same ones along the first dimension (time)."""
    if noise is None or probability == 0:
        return x_TBH
    shape = (1, *x_TBH.shape[1:]) if locked else x_TBH.shape
    return x_TBH * _mask(shape, probability, noise, x_TBH.dtype)


@contextmanager
def recurrent_weights_dropped(
    cell: nn.Module, probability: float, noise: torch.Generator | None
) -> Iterator[None]:
    """Apply DropConnect to the cell's recurrent matrix [G, H] inside the block; restore it afterwards.

    The dropped matrix takes the parameter's place for every backend, as with
    torch.func.functional_call, and gradients flow through it to the parameter.
    """
    if noise is None or probability == 0:
        yield
        return
    original = cell._parameters["weight_hh_l0"]
    assert original is not None
    # Assigned in place: optimizer states depend on the order of a module's parameters.
    cell._parameters["weight_hh_l0"] = dropout(original, probability, noise)  # type: ignore[assignment]
    try:
        yield
    finally:
        cell._parameters["weight_hh_l0"] = original


def activation_penalty(
    whole_TBH: Tensor,
    dropped_TBH: Tensor,
    *,
    alpha: float,
    beta: float,
    counted_TB: Tensor | None = None,
    starts_TB: Tensor | None = None,
) -> Tensor:
    """α mean h² over the outputs after dropout + β mean (h_t − h_{t−1})² over those before it.

    Activation and temporal activation regularization of the last layer (Merity, McCann and Socher
    2017), with means instead of the paper's sums, as in the authors' code. With `counted_TB` and
    `starts_TB` (bool) the means are over counted steps, the second one without steps at which a sequence
    starts.
    """
    penalty = whole_TBH.new_zeros(())
    if alpha:
        penalty = penalty + alpha * _mean(dropped_TBH.square(), counted_TB)
    if beta and len(whole_TBH) > 1:
        pairs_TB = None
        if counted_TB is not None and starts_TB is not None:
            pairs_TB = counted_TB[1:] & counted_TB[:-1] & ~starts_TB[1:].to(counted_TB.device)
        penalty = penalty + beta * _mean(whole_TBH.diff(dim=0).square(), pairs_TB)
    return penalty


def _mean(x_TBH: Tensor, of_TB: Tensor | None) -> Tensor:
    """The mean of x over all steps, or over those marked in `of_TB`, 0 if there are none."""
    if of_TB is None:
        return x_TBH.mean()
    dtype = torch.promote_types(x_TBH.dtype, torch.float32)
    return (x_TBH.mean(-1) * of_TB).sum(dtype=dtype) / of_TB.sum().clamp(min=1)


def _mask(
    shape: Sequence[int], probability: float, noise: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """A mask of zeros with `probability` and 1 / (1 - probability) elsewhere.

    torch's own dropout draws from the global generator, which any other draw would advance.
    """
    # The cost is in drawing random numbers, so each 64-bit draw decides four elements, 16 bits each.
    count = math.prod(shape)
    kept = max(1, round((1 - probability) * 2**16))
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=noise.device)
    bits = draws.random_(-(2**63), None, generator=noise).view(torch.int16)[:count]
    return (bits < kept - 2**15).view(*shape).to(dtype).mul_(2**16 / kept)
