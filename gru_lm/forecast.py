"""What a plan will come to: tokens, passes over the text, memory, disk. Reckoned, not tried.

Knows what is prepared; makes no model that takes memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gru_lm.model.cross_entropy import SLICE
from gru_lm.model.language_model import LanguageModel
from gru_lm.training.optimizers import slots_at_most

if TYPE_CHECKING:
    from gru_lm.prepare import Prepared

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


def forecast(prepared: Prepared, tokens_per_second: float | None, *, elapsed: float) -> Forecast:
    """What `prepared` will come to, `elapsed` seconds of its budget being gone."""
    plan, settings, data = prepared.plan, prepared.settings, prepared.data
    size = len(data.train.tokens)
    tokens = plan.tokens(
        settings, tokens=size, per_second=tokens_per_second or 0.0, elapsed=elapsed
    )
    config = prepared.model_config()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LanguageModel(config).parameters())
    slots = slots_at_most(plan.optimizer) + (settings.average is not None)
    N = plan.batch * plan.bptt
    units = plan.layers * N * plan.width
    logits = min(N * (config.rows or config.vocab_size), SLICE)
    blocks = BLOCKS_ADAPTIVE if config.cutoffs else BLOCKS
    return Forecast(
        tokens=int(tokens),
        epochs=tokens / size,
        tokens_per_second=tokens_per_second,
        memory=int(PROCESS + FLOAT * ((2 + slots) * parameters + KEPT * units + blocks * logits)),
        disk=FLOAT * (1 + slots) * parameters * (settings.keep + 1),
    )
