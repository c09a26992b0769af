"""Optimizers from torch.optim, and the learning rate as a pure function of the budget's progress.

Progress runs from 0 to 1 over the budget, whatever it is counted in, so that the rate has fallen
when the budget ends. Knows nothing of batches or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

FLOOR = 0.01  # of the highest rate: where the warm-up starts


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: steps, seconds, or both (whichever ends first)."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used up, 0 to 1.

        >>> Budget(steps=100, seconds=None).progress(25, 99.0)
        0.25
        """
        by_steps = step / self.steps if self.steps else 0.0
        by_seconds = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_seconds))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate: a linear rise over `warmup`, then `kind` down to nothing at 1."""

    kind: str
    lr: float
    warmup: float

    def __call__(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1].

        >>> [round(Schedule(kind="linear", lr=1.0, warmup=0.5)(p), 2) for p in (0, 0.25, 0.5, 1)]
        [0.01, 0.5, 1.0, 0.0]
        """
        if progress < self.warmup:
            return self.lr * max(FLOOR, progress / self.warmup)
        left = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 1.0
        if self.kind == "cosine":
            return self.lr * (1 - math.cos(math.pi * left)) / 2
        return self.lr * left if self.kind == "linear" else self.lr


def make_optimizer(model: nn.Module, name: str, *, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with momentum; the rate is set every step.

    Only matrices decay: not biases, whose start carries meaning.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)
