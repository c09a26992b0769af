"""What a plan will come to: tokens, passes over the text, memory, disk. Reckoned, not tried.

Takes settings and a plan; makes no model that takes memory.
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
PROCESS = 400e6  # bytes that a process takes which has imported PyTorch and matplotlib
KEPT = 16  # numbers of each unit and token for the way back, and there
# Blocks of logits, of the largest size, that are held. An adaptive softmax's are of another size at
# each step, so that the heap, which gives nothing back, holds many: 12 to 55, after some minutes.
BLOCKS, BLOCKS_ADAPTIVE = 2, 40


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of a training run; `memory` of the process and `disk` of its directory in bytes."""

    tokens: int
    epochs: float
    tokens_per_second: float | None  # None: not tried
    memory: int
    disk: int

    def __str__(self) -> str:
        speed = f" at {self.tokens_per_second:,.0f} a second" if self.tokens_per_second else ""
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
    """What `plan` comes to on a training text of `tokens`, `elapsed` seconds of the budget being gone.

    `per_second` are the tokens that it trains on a second, where that was tried.
    """
    trained = plan.tokens(settings, tokens=tokens, per_second=per_second or 0.0, elapsed=elapsed)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LanguageModel(config).parameters())
    slots = slots_at_most(plan.optimizer) + (settings.average is not None)
    N = plan.batch * plan.bptt
    units = plan.layers * N * plan.width
    logits = min(N * (config.rows or config.vocab_size), SLICE)
    blocks = BLOCKS_ADAPTIVE if config.cutoffs else BLOCKS
    return Forecast(
        tokens=int(trained),
        epochs=trained / tokens,
        tokens_per_second=per_second,
        memory=int(PROCESS + FLOAT * ((2 + slots) * parameters + KEPT * units + blocks * logits)),
        disk=FLOAT * (1 + slots) * parameters * (settings.keep + 1),
    )
