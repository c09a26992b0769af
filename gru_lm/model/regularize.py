"""What keeps a model from learning its text by heart: what is dropped in a step, and what is penalised.

All randomness comes from an explicit generator, `noise`; without it nothing is dropped, so that
evaluating a model cannot depend on anything drawn before. What stays is scaled up, so that expectations
do not change. Knows no cell's equation, no softmax and no optimizer.

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


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """How a model is regularised while it trains. Raises UsageError where a value makes no sense."""

    dropout: float = 0.0  # of units between layers
    output_dropout: float | None = None  # of units after the last layer; None: the same
    input_dropout: float = 0.0  # of units of the embeddings
    embedding_dropout: float = 0.0  # of tokens, wherever they stand (Gal and Ghahramani 2016)
    weight_drop: float = 0.0  # of recurrent weights (Merity, Keskar and Socher 2018)
    locked: bool = False  # one mask of units for all steps of a batch (the same two papers)
    ar: float = 0.0  # α and β of `activation_penalty`
    tar: float = 0.0

    def __post_init__(self) -> None:
        if self.output_dropout is None:
            object.__setattr__(self, "output_dropout", self.dropout)
        for field in fields(self):
            value = getattr(self, field.name)
            most = math.inf if field.name in ("ar", "tar", "locked") else 1
            if not 0 <= value < most:  # refuses NaN too
                raise UsageError(f"{field.name} must be in [0, {most}), not {value}")


def dropout(
    x_TBH: Tensor, probability: float, noise: torch.Generator | None, *, locked: bool = False
) -> Tensor:
    """`x` with units dropped; locked: the same ones at every place of the first dimension."""
    if noise is None or probability == 0:
        return x_TBH
    shape = (1, *x_TBH.shape[1:]) if locked else x_TBH.shape
    return x_TBH * _mask(shape, probability, noise, x_TBH.dtype)


@contextmanager
def recurrent_weights_dropped(
    cell: nn.Module, probability: float, noise: torch.Generator | None
) -> Iterator[None]:
    """The cell computes with weights dropped from its hidden-to-hidden matrix [G, H]; then has it back.

    Whatever does the arithmetic finds the dropped matrix in the parameter's place, as under
    torch.func.functional_call; gradients reach the parameter through it.
    """
    if noise is None or probability == 0:
        yield
        return
    whole = cell._parameters["weight_hh_l0"]
    assert whole is not None
    # In its place in the dictionary: the order of a module's parameters is the optimizer's.
    cell._parameters["weight_hh_l0"] = dropout(whole, probability, noise)  # type: ignore[assignment]
    try:
        yield
    finally:
        cell._parameters["weight_hh_l0"] = whole


def activation_penalty(
    whole_TBH: Tensor, dropped_TBH: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """α mean h² of the last layer's dropped outputs + β mean (h_t − h_{t−1})² of its whole ones.

    Merity, McCann and Socher 2017, with means where they write sums, as their code has it.
    """
    penalty = whole_TBH.new_zeros(())
    if alpha:
        penalty = penalty + alpha * dropped_TBH.square().mean()
    if beta and len(whole_TBH) > 1:
        penalty = penalty + beta * whole_TBH.diff(dim=0).square().mean()
    return penalty


def _mask(
    shape: Sequence[int], probability: float, noise: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Zeros with `probability`, and 1 / (1 - probability) elsewhere.

    Our own rather than torch's dropout, whose hidden global generator any other draw would move.
    """
    # Sixteen random bits decide for an element, four elements a draw: drawing is what it costs.
    count = math.prod(shape)
    kept = max(1, round((1 - probability) * 2**16))
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=noise.device)
    bits = draws.random_(-(2**63), None, generator=noise).view(torch.int16)[:count]
    return (bits < kept - 2**15).view(*shape).to(dtype).mul_(2**16 / kept)
