"""Estimates what a plan will need: training tokens, epochs, memory and disk space.

Calculated from settings and plan; nothing is run, and no model is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gru_lm.config import Settings
from gru_lm.model.cross_entropy import SLICE
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.training.optimizers import slots_at_most
from gru_lm.training.plan import Plan

FLOAT = 4  # bytes
PROCESS = 400e6  # bytes used by a process that has imported PyTorch and matplotlib
ACTIVATIONS = 16  # numbers stored per unit and token for the backward pass
# Slices of logits, of the maximum size, in memory. Those of an adaptive softmax differ in size between
# steps and fragment the heap, which returns no memory: 12 to 55 slices after a few minutes.
SLICES, SLICES_ADAPTIVE = 2, 40


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Estimates for a training run: `memory` of the process and `disk` of its directory in bytes."""

    tokens: int
    epochs: float
    tokens_per_second: float | None  # None: not measured
    memory: int
    disk: int

    def __str__(self) -> str:
        speed = f" at {self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        return (
            f"{self.tokens:,} tokens{speed}, {self.epochs:.3g} epochs; "
            f"{self.memory / 1e6:,.0f} MB of memory, {self.disk / 1e6:,.0f} MB of disk"
        )


def forecast(
    settings: Settings,
    plan: Plan,
    config: ModelConfig,
    *,
    tokens: int,
    per_second: float | None,
    elapsed: float,
) -> Forecast:
    """Estimate the run of `plan` on a training text of `tokens`, after `elapsed` seconds of the budget.

    `per_second` is the measured speed in training tokens per second, or None.
    """
    trained = plan.tokens(settings, tokens=tokens, per_second=per_second or 0.0, elapsed=elapsed)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LanguageModel(config).parameters())
    slots = slots_at_most(plan.optimizer) + (settings.average is not None)
    N = plan.batch * plan.bptt
    units = plan.layers * N * plan.width
    logits = min(N * (config.rows or config.vocab_size), SLICE)
    slices = SLICES_ADAPTIVE if config.cutoffs else SLICES
    numbers = (2 + slots) * parameters + ACTIVATIONS * units + slices * logits
    return Forecast(
        tokens=int(trained),
        epochs=trained / tokens,
        tokens_per_second=per_second,
        memory=int(PROCESS + FLOAT * numbers),
        disk=FLOAT * (1 + slots) * parameters * (settings.keep + 1),
    )
