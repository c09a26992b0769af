"""Optimizers, the learning rate as a pure function of the budget's progress, averages of the weights.

Progress runs from 0 to 1 over the budget, whatever it is counted in, so that the rate has fallen
when the budget ends. Knows nothing of batches or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

FLOOR = 0.01  # of the highest rate: where the warm-up starts
PATIENT = 5  # validations that NT-ASGD does not look back on


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: steps, seconds, or both (whichever ends first).

    Of the seconds, `began` were gone before the first step, and do not count as progress.
    """

    steps: int | None
    seconds: float | None
    began: float = 0.0

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used up, 0 to 1.

        >>> Budget(steps=100, seconds=None).progress(25, 99.0)
        0.25
        """
        by_steps = step / self.steps if self.steps else 0.0
        if self.seconds is None:
            return min(1.0, by_steps)
        if seconds >= self.seconds:
            return 1.0
        by_seconds = max(0.0, seconds - self.began) / (self.seconds - self.began)
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
    """AdamW (Loshchilov and Hutter 2019), or SGD with momentum ("sgd") or without ("nt-asgd").

    The rate is set every step, and averages are the training loop's.

    Only matrices decay: not biases, whose start carries meaning.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9 if name == "sgd" else 0.0)


def newest_share(decay: float | None, steps: int) -> float:
    """What share of an average of the weights, `steps` steps after its start, the newest ones have.

    The plain mean, or exponential with `decay`, which is less while there are few to average.

    >>> newest_share(None, 1), newest_share(0.99, 1) == 1 - 2 / 11, round(newest_share(0.99, 9999), 9)
    (0.5, True, 0.01)
    """
    return 1 / (steps + 1) if decay is None else 1 - min(decay, (1 + steps) / (10 + steps))


def no_longer_falls(nats: float, before: Sequence[float]) -> bool:
    """When NT-ASGD begins to average (Merity, Keskar and Socher 2018, algorithm 1).

    `nats` is a validation's loss, worse than the best of those `before`, less the last PATIENT.

    >>> no_longer_falls(3.5, [4, 3, 5, 5, 5, 5]), no_longer_falls(3.5, [4, 3, 5, 5, 5, 5, 5])
    (False, True)
    """
    return len(before) > PATIENT and nats > min(before[:-PATIENT])
