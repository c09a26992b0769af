"""A plan: the complete hyperparameters of a training run, and what follows from them.

Derives model config, steps and tokens. The values are chosen in planning/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gru_lm.config import Settings
from gru_lm.model.cells import CELLS
from gru_lm.model.heads import choose_cutoffs
from gru_lm.model.language_model import SMALL, ModelConfig
from gru_lm.model.options import RegularizationOptions, Shape, names
from gru_lm.model.regularize import Regularization

PENALTIES, HUGE = ("ar", "tar", "weight_decay"), 1000.0
TRAINING_SHARE = 0.95  # of the remaining time; the rest is for validations and checkpoints


@dataclass(frozen=True, kw_only=True)
class Plan(Shape, RegularizationOptions):
    """The settings that the planner can choose, complete."""

    softmax: str
    batch: int
    bptt: int
    optimizer: str
    lr: float
    weight_decay: float
    beta2: float
    precision: str
    epochs: float | None = None  # at most
    locked: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Plan:
        """The plan in complete settings."""
        return cls(**{name: getattr(settings, name) for name in names(cls)})

    def total_steps(self, settings: Settings, *, tokens: int) -> int | None:
        """The budget in steps for a text of `tokens`; None for a budget in minutes alone."""
        step_tokens = self.batch * self.bptt
        limits = [settings.steps] if settings.steps else []
        if settings.tokens:
            limits.append(math.ceil(settings.tokens / step_tokens))
        if settings.epochs:
            limits.append(math.ceil(settings.epochs * tokens / step_tokens))
        return min(limits, default=None)

    def model_config(self, counts_V: Tensor) -> ModelConfig:
        """The config of the model, for piece counts `counts_V` of the training text."""
        cutoffs: tuple[int, ...] = ()
        rows = 0
        if self.softmax == "adaptive":
            cutoffs = choose_cutoffs(counts_V, embed=self.embed)
        elif (seen := int((counts_V > 0).sum())) + 1 < len(counts_V):
            rows = seen + 1  # one shared by all pieces that do not occur
        shape = {name: getattr(self, name) for name in names(Shape)}
        return ModelConfig(**shape, vocab_size=len(counts_V), rows=rows, cutoffs=cutoffs)

    def regularization(self) -> Regularization:
        """Dropout rates and penalties."""
        return Regularization(**{name: getattr(self, name) for name in names(Regularization)})

    def weights(self, vocab_size: int) -> float:
        """Weights multiplied with per token, in a model for this vocabulary."""
        rows = vocab_size if self.softmax == "full" else vocab_size / 10  # on average
        return self._without_rows(vocab_size) + rows * (self.embed if self.tied else self.width)

    def held(self, vocab_size: int) -> float:
        """Approximate number of weights; rare pieces have narrow rows in an adaptive softmax."""
        rows = vocab_size if self.softmax == "full" else 0.4 * vocab_size
        return self._without_rows(vocab_size) + rows * (self.embed + (not self.tied) * self.width)

    def _without_rows(self, vocab_size: int) -> float:
        gates, inputs = len(CELLS[self.cell].gates), 0 if vocab_size <= SMALL else self.embed
        recurrent = gates * self.width * (inputs + (2 * self.layers - 1) * self.width)
        return recurrent + (
            self.width * self.embed if self.tied and self.embed != self.width else 0
        )

    def remedy(self, otherwise: str) -> str:
        """Hint after divergence: reduce penalties above HUGE, or if there are none, `otherwise`."""
        huge = [f"--{name.replace('_', '-')}" for name in PENALTIES if getattr(self, name) > HUGE]
        return f"a smaller {' and '.join(huge)}" if huge else otherwise

    def tokens(
        self, settings: Settings, *, tokens: int, per_second: float, elapsed: float
    ) -> float:
        """Training tokens within the budget, for a text of `tokens`.

        `per_second`: tokens per second; `elapsed`: seconds of a budget in minutes already used.
        """
        limits = []
        if steps := self.total_steps(settings, tokens=tokens):
            limits.append(steps * self.batch * self.bptt)
        if settings.minutes:
            seconds = max(0.0, settings.minutes * 60 - elapsed)
            limits.append(int(seconds * TRAINING_SHARE * per_second))
        return min(limits)
