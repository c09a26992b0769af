"""From a text and a budget to the settings nobody gave: a short rule, printed before it is used.

The rule looks at how much text there is and how long there is to train. It is deliberately coarse:
every choice can be overridden by its flag. Knows nothing of files or models.

    tokenizer   char up to 5 M characters, bpe beyond: a subword sees further per step
    size        more time and more text carry a wider model; under 200 k tokens one narrow layer
    streams     many streams of short steps give many updates; few where there is little text
    lr          falls with the root of the width (AdamW)
    softmax     adaptive where there are so many pieces that a full one is most of the arithmetic
    dropout     where the text will be seen many times over
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gru_lm.config import Settings
from gru_lm.errors import InputError, UsageError

DEFAULT_CELL = "gru"
DEFAULT_MINUTES = 5.0
LEAST_CHARACTERS = 100  # of training text: under that there is nothing to learn from
MOST_CHARACTERS_FOR_CHAR = 5_000_000
MOST_PIECES_UNTIED = 4096
# Beyond, an adaptive softmax learns more a minute. Measured on a CPU; on CUDA, where products are cheap
# and the clusters' small ones are not, a guess.
MOST_PIECES_FULL = {"cpu": 4096, "cuda": 32_768}
WEIGHTS_PER_SECOND = {"cpu": 1e10, "cuda": 1e12}  # rough: weights x tokens a second, trained


def plan_budget(settings: Settings) -> Settings:
    """Five minutes where no budget is given."""
    if settings.minutes or settings.epochs or settings.steps or settings.tokens:
        return settings
    return dataclasses.replace(settings, minutes=DEFAULT_MINUTES)


def plan_like(settings: Settings, model: Mapping[str, Any]) -> Settings:
    """`settings` with the shape of another run's `model`, to start from its weights.

    Raises UsageError where they say otherwise themselves.
    """
    shape = {name: model[name] for name in ("cell", "layers", "width", "embed", "tied")}
    shape["softmax"] = "adaptive" if model["cutoffs"] else "full"
    for name, value in shape.items():
        if getattr(settings, name) not in (None, "auto", value):
            raise UsageError(
                f"--{name} {getattr(settings, name)} does not go with --from: the run has {value}",
                hint=f"leave --{name} out",
            )
    if settings.tokenizer or settings.vocab_size:
        raise UsageError(
            "--tokenizer and --vocab-size do not go with --from: the run's tokenizer is kept",
            hint="leave them out",
        )
    return dataclasses.replace(settings, **shape)


def plan_tokenizer(settings: Settings, *, characters: int) -> str:
    """The tokenizer for `characters` of training text. Raises InputError where that is too little."""
    if characters < LEAST_CHARACTERS:
        raise InputError(
            f"the training text is too short: {characters} characters",
            why=f"at least {LEAST_CHARACTERS} must be left after the split {settings.split}",
            hint="add text, or train on @docstrings",
        )
    return settings.tokenizer or ("char" if characters <= MOST_CHARACTERS_FOR_CHAR else "bpe")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that the rule may choose, all chosen."""

    cell: str
    layers: int
    width: int
    embed: int
    tied: bool
    softmax: str
    dropout: float
    batch: int
    bptt: int
    lr: float
    weight_decay: float

    def total_steps(self, settings: Settings, *, tokens: int) -> int | None:
        """The budget in steps, if any part of it can be counted in steps."""
        step_tokens = self.batch * self.bptt
        limits = [settings.steps] if settings.steps else []
        if settings.tokens:
            limits.append(math.ceil(settings.tokens / step_tokens))
        if settings.epochs:
            limits.append(math.ceil(settings.epochs * tokens / step_tokens))
        return min(limits, default=None)


def plan_model(settings: Settings, *, tokens: int, vocab_size: int, device: str) -> Plan:
    """Size and training of a model for `tokens` training tokens. Raises InputError if too few."""
    minutes = settings.minutes or DEFAULT_MINUTES
    if tokens < 200_000:
        width, layers = 128, 1
    elif device == "cuda":
        width, layers = (512 if minutes < 2 else 1024), 2
    else:
        # A second layer halves the tokens that a short time gives, and did not pay for it.
        width, layers = (256 if minutes < 20 else 512), (1 if minutes < 10 else 2)
    width = settings.width or width
    softmax = settings.softmax
    if softmax == "auto":
        many = vocab_size > MOST_PIECES_FULL[device] and settings.tied is not False
        softmax = "adaptive" if many else "full"
    # An untied embedding of a small vocabulary needs few dimensions; a large one is worth sharing.
    tied = softmax == "adaptive" or vocab_size > MOST_PIECES_UNTIED
    tied = tied if settings.tied is None else settings.tied
    bptt = settings.bptt or max(1, min(48, tokens // 16))
    batch = settings.batch or max(1, min(24 if device == "cpu" else 64, tokens // (4 * bptt)))
    if batch * bptt > tokens:
        raise InputError(
            f"the training text is too short: {tokens:,} tokens",
            why=f"{batch} streams of {bptt} steps need {batch * bptt:,}",
            hint="add text, or a smaller --batch or --bptt",
        )
    rate = 5e-3 if settings.optimizer == "adamw" else 1.0
    plan = Plan(
        cell=settings.cell or DEFAULT_CELL,
        layers=settings.layers or layers,
        width=width,
        embed=settings.embed or (width if tied else min(width, 128)),
        tied=tied,
        softmax=softmax,
        dropout=settings.dropout or 0.0,
        batch=batch,
        bptt=bptt,
        lr=round(rate * (256 / width) ** 0.5, 6) if settings.lr is None else settings.lr,
        weight_decay=0.1 if settings.weight_decay is None else settings.weight_decay,
    )
    if settings.dropout is not None:
        return plan
    epochs = _epochs(settings, plan, tokens=tokens, vocab_size=vocab_size, device=device)
    dropout = 0.0 if epochs < 2 else 0.1 if epochs < 10 else 0.3
    return dataclasses.replace(plan, dropout=dropout)


def _epochs(settings: Settings, plan: Plan, *, tokens: int, vocab_size: int, device: str) -> float:
    """How often the budget will go through the text, roughly."""
    limits = []
    steps = plan.total_steps(settings, tokens=tokens)
    if steps:
        limits.append(steps * plan.batch * plan.bptt / tokens)
    if settings.minutes:
        rows = vocab_size if plan.softmax == "full" else vocab_size / 16
        weights = plan.width * (6 * plan.width * plan.layers + rows)
        limits.append(settings.minutes * 60 * WEIGHTS_PER_SECOND[device] / weights / tokens)
    return min(limits)
