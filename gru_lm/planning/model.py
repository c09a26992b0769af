"""From a text, a budget and the speed of this machine to the settings nobody gave.

Printed before it is used; every choice can be overridden by its flag. Knows no files and makes no model:
the speed of a plan is measured by the caller. What the numbers rest on is in docs/planner.md.

    softmax     adaptive for vocabularies so large that a full one is most of the arithmetic
    size        the largest model that the budget can show TOKENS_PER_WEIGHT tokens for each weight it
                multiplies with; a token seen again counts less with each epoch
    streams     few streams of short steps give many updates; twice as many where an update is expensive
    optimizer   Muon, which needs far fewer tokens than AdamW
    dropout     grows with the risk of overfitting, estimated as epochs x sqrt(parameters / tokens); on
                units, and on recurrent weights or embeddings. A run stops early after MOST_EPOCHS
    lr          falls with the root of the width; each cell has a factor of its own; with tied embeddings
                it falls with the steps too
    decay       0.1; with tied embeddings such that AdamW averages over MEMORY_EPOCHS
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gru_lm.config import Settings
from gru_lm.errors import InputError, UsageError, unknown_name
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import SMALL
from gru_lm.model.options import RegularizationOptions, Shape, names
from gru_lm.training.plan import Plan

Given = TypeVar("Given", bool, float)

DEFAULT_CELL = "gru"
DEFAULT_OPTIMIZER = "muon"
DEFAULT_MINUTES = 5.0
MOST_PIECES_UNTIED = 4096
# Beyond, an adaptive softmax learns more a minute. Measured on a CPU; on CUDA, where products are cheap
# and the clusters' small ones are not, a guess.
MOST_PIECES_FULL = {"cpu": 3000, "cuda": 32_768}
# Weights that are multiplied with, times tokens, trained a second: assumed until it is measured.
WEIGHTS_PER_SECOND = {"cpu": 2.5e10, "cuda": 1e12}
TOKENS_PER_WEIGHT = 4.0  # that a model of the right size sees
REPEATS = 15.4  # what endless epochs are worth beside the first (Muennighoff et al. 2023)
# Layers and width. A second layer is worth more than a wider first one from about 128 on.
SIZES = (
    *((1, width) for width in (64, 96, 128)),
    *(
        (2, width)
        for width in (128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
    ),
)
TRIALS = 3  # measurements of speed, a second each
BPTT = 48
STREAMS = {"cpu": 24, "cuda": 64}
# For new text in limited time with tied embeddings, of which each update moves all rows.
STREAMS_TIED = {"cpu": 48, "cuda": 64}
REPEATED = 2.0  # epochs beyond which text counts as repeated, not new
MOST_EPOCHS = 60.0  # more only overfit
# The risk of overfitting that needs no dropout yet, and the dropout that each doubling of it adds; by
# whether embeddings are tied.
RISK_WITHOUT_DROPOUT = {False: 12.0, True: 5.0}
DROPOUT_PER_DOUBLING = {False: 0.115, True: 0.066}
LEAST_DROPOUT, MOST_DROPOUT = 0.05, 0.5  # less made no difference
BASE_RATES = {"muon": 5e-3, "adamw": 5e-3, "sgd": 1.0, "nt-asgd": 10.0}  # of a GRU of BASE_WIDTH
BASE_WIDTH = 256
# Of the GRU's rate, where the best one of a cell differs clearly (python -m benchmarks rates).
CELL_RATES = {"lstm": 1.4}
ADAPTIVE = (
    "adamw",
    "muon",
)  # optimizers whose updates are as large as the rate, whatever the gradient
FULL_RATE_STEPS = 2000  # of a tied matrix; in more steps the rate falls with their sixth root
# AdamW's weights average over 1 / (rate · decay) updates. Those of a tied matrix should average over as
# many epochs, whatever the rate and the text (Wang and Aitchison 2024); twice MOST_DECAY was too much.
# Untied, as for characters, DECAY was best.
MEMORY_EPOCHS = 1.25
DECAY, MOST_DECAY = 0.1, 0.3
DECAY_NOT_ADAPTIVE = 1.2e-6  # beside rates of 1 and 10
# AdamW's memory of squared gradients. The long one moves rows of rare words far each time they occur:
# they are learnt from fewer examples, and overfitted where the same examples come again.
BETA2_NEW, BETA2_REPEATED = 0.999, 0.99


def plan_budget(settings: Settings) -> Settings:
    """Five minutes where no budget is given."""
    if settings.minutes or settings.epochs or settings.steps or settings.tokens:
        return settings
    return dataclasses.replace(settings, minutes=DEFAULT_MINUTES)


def plan_like(settings: Settings, model: Mapping[str, Any]) -> Settings:
    """`settings` with the shape of another run's `model`, to start from its weights.

    Raises UsageError where they say otherwise themselves.
    """
    shape = {name: model[name] for name in names(Shape)}
    shape["softmax"] = "adaptive" if model["cutoffs"] else "full"
    for name, value in shape.items():
        if getattr(settings, name) not in (None, "auto", value):
            raise UsageError(
                f"--{name} {getattr(settings, name)} does not go with --from: the run has {value}",
                hint=f"leave --{name} out",
            )
    for name in ("tokenizer", "vocab_size", "tokenizer_characters"):
        if getattr(settings, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with --from: the run's tokenizer is kept",
                hint="leave it out",
            )
    return dataclasses.replace(settings, **shape)


def plan_model(
    settings: Settings,
    *,
    tokens: int,
    vocab_size: int,
    device: str,
    precision: str = "float32",
    speed: Callable[[Plan], float] | None = None,
    elapsed: float = 0.0,
) -> Plan:
    """Size and training of a model for `tokens` training tokens. Raises InputError if too few.

    `vocab_size` counts the pieces that occur. `speed` measures the tokens a second that a plan trains
    on; without it, and without a budget in minutes, the speed is assumed. `precision` is the fastest
    that is good enough there; `elapsed` seconds of the budget are gone.
    """
    if settings.cell not in (None, *CELLS):
        raise unknown_name("cell", settings.cell or "", CELLS)
    settings = dataclasses.replace(settings, precision=settings.precision or precision)
    # Without a budget in minutes, still no larger a model than the usual minutes can train.
    timed = dataclasses.replace(settings, minutes=settings.minutes or DEFAULT_MINUTES)
    elapsed = elapsed if settings.minutes else 0.0

    def seen(plan: Plan, per_second: float, budget: Settings = settings) -> float:
        return plan.tokens(budget, tokens=tokens, per_second=per_second, elapsed=elapsed)

    text: dict[str, Any] = {"tokens": tokens, "vocab_size": vocab_size}
    drafts = [_draft(settings, *size, device=device, **text) for size in SIZES]

    def largest(weights_per_second: float) -> Plan:
        """The largest model that the budget can show enough tokens, or the smallest."""
        chosen = drafts[0]
        for draft in drafts[1:]:
            weights = draft.weights(vocab_size)
            shown = seen(draft, weights_per_second / weights, timed)
            if weights * TOKENS_PER_WEIGHT > worth(shown, tokens):
                break
            chosen = draft
        return chosen

    def with_streams(plan: Plan, per_second: float) -> Plan:
        """More streams for new text in limited time, where an update moves all of a tied matrix."""
        new = seen(plan, per_second) <= REPEATED * tokens
        if not (new and plan.tied and settings.minutes) or settings.batch:
            return plan
        many = min(STREAMS_TIED[device], tokens // (4 * plan.bptt))
        return dataclasses.replace(plan, batch=max(plan.batch, many))

    # Size: the speed of each candidate is measured, until it is its own choice.
    weights_per_second, measured = WEIGHTS_PER_SECOND[device], dict[Plan, float]()
    while True:
        plan = largest(weights_per_second)
        if not (speed and settings.minutes) or plan in measured or len(measured) == TRIALS:
            break
        measured[plan] = speed(with_streams(plan, weights_per_second / plan.weights(vocab_size)))
        weights_per_second = measured[plan] * plan.weights(vocab_size)
    if measured and plan not in measured:
        plan = [*measured][-1]
    per_second = measured.get(plan, weights_per_second / plan.weights(vocab_size))

    # All that follows from how often the text is seen at this speed.
    plan = with_streams(plan, per_second)
    trained, most_epochs = seen(plan, per_second), settings.epochs
    epochs = trained / tokens
    if epochs > MOST_EPOCHS and not (settings.epochs or settings.steps or settings.tokens):
        trained, most_epochs = MOST_EPOCHS * tokens, MOST_EPOCHS
    dropout = _given(settings.dropout, _dropout(plan, epochs, **text))
    # A small vocabulary is read from a table, without dropout: recurrent weights are dropped instead.
    inputs, recurrent = (0.0, dropout) if vocab_size <= SMALL else (dropout, 0.0)
    rate = _given(settings.lr, _rate(plan, trained))
    return dataclasses.replace(
        plan,
        epochs=most_epochs,
        dropout=dropout,
        input_dropout=_given(settings.input_dropout, inputs),
        weight_drop=_given(settings.weight_drop, recurrent),
        lr=rate,
        weight_decay=_given(settings.weight_decay, _decay(plan, rate, tokens=tokens)),
        beta2=_given(settings.beta2, BETA2_REPEATED if epochs > REPEATED else BETA2_NEW),
    )


def worth(seen: float, tokens: int) -> float:
    """What `seen` tokens of a text of `tokens` are worth, in new ones: each epoch less than the last.

    Muennighoff et al. 2023, "Scaling data-constrained language models", equation 5.

    >>> round(worth(1e6, 2_000_000)), round(worth(4e6, 1_000_000)), round(worth(1e9, 1_000_000))
    (1000000, 3725878, 16400000)
    """
    again = max(0.0, seen / tokens - 1)
    return min(seen, tokens) + tokens * REPEATS * (1 - math.exp(-again / REPEATS))


def _draft(
    settings: Settings, layers: int, width: int, *, tokens: int, vocab_size: int, device: str
) -> Plan:
    """A plan of this size without what depends on speed: regularization, rate, decay, β₂."""
    width, layers = settings.width or width, settings.layers or layers
    softmax = settings.softmax
    if softmax == "auto":
        many = vocab_size > MOST_PIECES_FULL[device] and settings.tied is not False
        softmax = "adaptive" if many else "full"
    # An untied embedding of a small vocabulary needs few dimensions; a large one is worth sharing.
    tied = _given(settings.tied, softmax == "adaptive" or vocab_size > MOST_PIECES_UNTIED)
    bptt = settings.bptt or max(1, min(BPTT, tokens // max(16, settings.batch or 0)))
    batch = settings.batch or max(1, min(STREAMS[device], tokens // (4 * bptt)))
    if batch * bptt > tokens:
        raise InputError(
            f"the training text is too short: {tokens:,} tokens",
            why=f"{batch} streams of {bptt} steps need {batch * bptt:,}",
            hint="add text, or a smaller --batch or --bptt",
        )
    assert settings.precision is not None
    given = {
        name: value
        for name in (*names(Shape), *names(RegularizationOptions))
        if (value := getattr(settings, name)) is not None
    }
    planned: dict[str, Any] = {
        "cell": settings.cell or DEFAULT_CELL,
        "layers": layers,
        "width": width,
        "embed": settings.embed or (width if tied else min(width, 128)),
        "tied": tied,
        "residual": _given(settings.residual, layers > 1),
        "softmax": softmax,
        "batch": batch,
        "bptt": bptt,
        "optimizer": settings.optimizer or DEFAULT_OPTIMIZER,
        "precision": settings.precision,
        "lr": 0.0,
        "weight_decay": 0.0,
        "beta2": BETA2_NEW,
    }
    return Plan(**given | planned)


def _dropout(plan: Plan, epochs: float, *, tokens: int, vocab_size: int) -> float:
    """Grows with the risk of overfitting, estimated as epochs x sqrt(parameters / tokens)."""
    risk = min(epochs, MOST_EPOCHS) * math.sqrt(plan.held(vocab_size) / tokens)
    doublings = math.log2(max(1.0, risk / RISK_WITHOUT_DROPOUT[plan.tied]))
    dropout = round(min(MOST_DROPOUT, DROPOUT_PER_DOUBLING[plan.tied] * doublings), 2)
    return dropout if dropout >= LEAST_DROPOUT else 0.0


def _rate(plan: Plan, trained: float) -> float:
    """Of a run over so many tokens."""
    rate = BASE_RATES[plan.optimizer] * math.sqrt(BASE_WIDTH / plan.width)
    if plan.optimizer in ADAPTIVE:
        rate *= CELL_RATES.get(plan.cell, 1.0)
    rate = round(rate, 6)
    if plan.tied and plan.optimizer in ADAPTIVE:
        steps = max(1.0, trained) / (plan.batch * plan.bptt)
        rate = round(rate * min(1.0, math.pow(FULL_RATE_STEPS / steps, 1 / 6)), 6)
    return rate


def _decay(plan: Plan, rate: float, *, tokens: int) -> float:
    """Of the weights at a learning rate, in a training text of `tokens`."""
    if plan.optimizer not in ADAPTIVE:
        return DECAY_NOT_ADAPTIVE
    if not (plan.tied and rate):
        return DECAY
    return round(min(MOST_DECAY, plan.batch * plan.bptt / (MEMORY_EPOCHS * tokens * rate)), 4)


def _given(value: Given | None, planned: Given) -> Given:
    return planned if value is None else value
