"""The planner: choose unset hyperparameters from the text, the budget and the speed of this machine.

Every choice is printed before training and can be overridden by its flag. Opens no files and builds no
models; the caller measures the speed of a plan. docs/planner.md has the experiments behind the numbers.

    softmax     adaptive for vocabularies so large that a full softmax dominates the cost
    size        the largest model that sees TOKENS_PER_WEIGHT tokens per multiplied weight within the
                budget, where repeated tokens count less with each epoch
    streams     few streams with short truncated backpropagation, for many updates; twice as many where
                updates are expensive
    optimizer   Muon, which needs far fewer tokens than AdamW
    dropout     grows with the risk of overfitting, estimated as epochs x sqrt(parameters / tokens); on
                units, and on recurrent weights (DropConnect) or embeddings. Runs stop at MOST_EPOCHS
    lr          proportional to 1 / sqrt(width), times a factor for the cell; with tied embeddings, it
                also decreases with the number of steps
    decay       0.1; with tied embeddings, set so that AdamW averages over MEMORY_EPOCHS
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
# Above this, an adaptive softmax learns more per minute. Measured on CPU; a guess for CUDA, where small
# matrix products are inefficient.
MOST_PIECES_FULL = {"cpu": 3000, "cuda": 32_768}
# Training speed in multiplied weights x tokens per second, assumed until measured.
WEIGHTS_PER_SECOND = {"cpu": 2.5e10, "cuda": 1e12}
TOKENS_PER_WEIGHT = 4.0  # seen by a model of the right size
REPEATS = 15.4  # value of infinitely many further epochs, in first epochs (Muennighoff et al. 2023)
# Layers and width. From a width of about 128, a second layer helps more than a wider first one.
SIZES = (
    *((1, width) for width in (64, 96, 128)),
    *(
        (2, width)
        for width in (128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
    ),
)
TRIALS = 3  # speed measurements of a second each, at most
BPTT = 48
STREAMS = {"cpu": 24, "cuda": 64}
# For new text in limited time with tied embeddings, all rows of which change in every update.
STREAMS_TIED = {"cpu": 48, "cuda": 64}
REPEATED = 2.0  # epochs above which text counts as repeated rather than new
MOST_EPOCHS = 60.0  # more only overfit
# The highest risk of overfitting without dropout, and the dropout added by each doubling of the risk;
# keyed by whether embeddings are tied.
RISK_WITHOUT_DROPOUT = {False: 12.0, True: 5.0}
DROPOUT_PER_DOUBLING = {False: 0.115, True: 0.066}
LEAST_DROPOUT, MOST_DROPOUT = 0.05, 0.5  # less than LEAST_DROPOUT made no difference
LIST_DROP = 1.6  # DropConnect of lists of characters, over the dropout of running text
BASE_RATES = {"muon": 5e-3, "adamw": 5e-3, "sgd": 1.0, "nt-asgd": 10.0}  # for a GRU of BASE_WIDTH
BASE_WIDTH = 256
# Factors relative to the GRU, for cells whose best rate clearly differs (python -m benchmarks rates).
CELL_RATES = {"lstm": 1.4}
ADAPTIVE = (
    "adamw",
    "muon",
)  # optimizers whose update size depends on the learning rate, not on the gradient's scale
FULL_RATE_STEPS = (
    2000  # with a tied matrix; beyond, the rate falls with the sixth root of the steps
)
# The weights of AdamW are an average over 1 / (rate · decay) updates. A tied matrix should average over
# a fixed number of epochs, for any rate and text (Wang and Aitchison 2024); twice MOST_DECAY was too
# much. Untied, as for characters, DECAY was best.
MEMORY_EPOCHS = 1.25
DECAY, MOST_DECAY = 0.1, 0.3
DECAY_NOT_ADAPTIVE = 1.2e-6  # for rates of 1 and 10
# β₂ of AdamW. The larger one makes large updates to the rows of rare words, which are then learnt from
# fewer examples, but overfitted if the same examples are repeated.
BETA2_NEW, BETA2_REPEATED = 0.999, 0.99


def plan_budget(settings: Settings) -> Settings:
    """The settings with the default budget if none is given."""
    if settings.minutes or settings.epochs or settings.steps or settings.tokens:
        return settings
    return dataclasses.replace(settings, minutes=DEFAULT_MINUTES)


def plan_like(settings: Settings, model: Mapping[str, Any]) -> Settings:
    """`settings` with the shape of another run's `model`, to start from its weights.

    Raises UsageError if they conflict with that shape.
    """
    shape = {name: model[name] for name in names(Shape)}
    shape["softmax"] = "adaptive" if model["cutoffs"] else "full"
    for name, value in shape.items():
        if getattr(settings, name) not in (None, "auto", value):
            raise UsageError(
                f"--{name} {getattr(settings, name)} cannot be combined with --from: "
                f"the run has {value}",
                hint=f"leave --{name} out",
            )
    for name in ("tokenizer", "vocab_size", "tokenizer_characters"):
        if getattr(settings, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} cannot be combined with --from: "
                "the run's tokenizer is kept",
                hint="leave it out",
            )
    return dataclasses.replace(settings, **shape)


def plan_model(
    settings: Settings,
    *,
    tokens: int,
    vocab_size: int,
    device: str,
    is_list: bool = False,
    precision: str = "float32",
    speed: Callable[[Plan], float] | None = None,
    elapsed: float = 0.0,
) -> Plan:
    """Plan model size and training for `tokens` training tokens.

    `vocab_size`: pieces that occur. `is_list`: the tokens are records. `speed` measures the training
    speed of a plan in tokens per second; without it, or without a budget in minutes, the speed is
    assumed. `precision`: default precision. `elapsed`: seconds of the budget already used. Raises
    InputError if there are too few tokens.
    """
    if settings.cell not in (None, *CELLS):
        raise unknown_name("cell", settings.cell or "", CELLS)
    settings = dataclasses.replace(settings, precision=settings.precision or precision)
    # Without a budget in minutes, the model is no larger than for the default minutes.
    timed = dataclasses.replace(settings, minutes=settings.minutes or DEFAULT_MINUTES)
    elapsed = elapsed if settings.minutes else 0.0

    def seen(plan: Plan, per_second: float, budget: Settings = settings) -> float:
        return plan.tokens(budget, tokens=tokens, per_second=per_second, elapsed=elapsed)

    text: dict[str, Any] = {"tokens": tokens, "vocab_size": vocab_size}
    drafts = [_draft(settings, *size, device=device, **text) for size in SIZES]

    def largest(weights_per_second: float) -> Plan:
        """The largest model that sees enough tokens within the budget, or the smallest."""
        best = drafts[0]
        for draft in drafts[1:]:
            weights = draft.weights(vocab_size)
            shown = seen(draft, weights_per_second / weights, timed)
            if weights * TOKENS_PER_WEIGHT > worth(shown, tokens):
                break
            best = draft
        return best

    def with_streams(plan: Plan, per_second: float) -> Plan:
        """More streams for new text in limited time, where updates change a whole tied matrix."""
        new = seen(plan, per_second) <= REPEATED * tokens
        if not (new and plan.tied and settings.minutes) or settings.batch:
            return plan
        many = min(STREAMS_TIED[device], tokens // (4 * plan.bptt))
        return dataclasses.replace(plan, batch=max(plan.batch, many))

    # Size: measure the speed of a candidate, until that speed selects the same candidate.
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

    # Everything that depends on the number of epochs at this speed.
    plan = with_streams(plan, per_second)
    trained, most_epochs = seen(plan, per_second), settings.epochs
    epochs = trained / tokens
    if epochs > MOST_EPOCHS and not (settings.epochs or settings.steps or settings.tokens):
        trained, most_epochs = MOST_EPOCHS * tokens, MOST_EPOCHS
    planned = _dropout(plan, epochs, **text)
    rate = _given(settings.lr, _rate(plan, trained))
    return dataclasses.replace(
        plan,
        epochs=most_epochs,
        **_dropouts(settings, planned, vocab_size=vocab_size, is_list=is_list),
        lr=rate,
        weight_decay=_given(settings.weight_decay, _decay(plan, rate, tokens=tokens)),
        beta2=_given(settings.beta2, BETA2_REPEATED if epochs > REPEATED else BETA2_NEW),
    )


def worth(seen: float, tokens: int) -> float:
    """Value of `seen` tokens from a text of `tokens`, in new tokens; it declines with each epoch.

    Muennighoff et al. 2023, "Scaling data-constrained language models", equation 5.

    >>> round(worth(1e6, 2_000_000)), round(worth(4e6, 1_000_000)), round(worth(1e9, 1_000_000))
    (1000000, 3725878, 16400000)
    """
    again = max(0.0, seen / tokens - 1)
    return min(seen, tokens) + tokens * REPEATS * (1 - math.exp(-again / REPEATS))


def _draft(
    settings: Settings, layers: int, width: int, *, tokens: int, vocab_size: int, device: str
) -> Plan:
    """A plan of this size, with everything that depends on speed (dropout, lr, decay, β₂) left open."""
    width, layers = settings.width or width, settings.layers or layers
    softmax = settings.softmax
    if softmax == "auto":
        many = vocab_size > MOST_PIECES_FULL[device] and settings.tied is not False
        softmax = "adaptive" if many else "full"
    # An untied embedding of a small vocabulary needs few dimensions; large ones should be tied.
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
    """Dropout, from the risk of overfitting: epochs x sqrt(parameters / tokens)."""
    risk = min(epochs, MOST_EPOCHS) * math.sqrt(plan.held(vocab_size) / tokens)
    doublings = math.log2(max(1.0, risk / RISK_WITHOUT_DROPOUT[plan.tied]))
    dropout = round(min(MOST_DROPOUT, DROPOUT_PER_DOUBLING[plan.tied] * doublings), 2)
    return dropout if dropout >= LEAST_DROPOUT else 0.0


def _dropouts(
    settings: Settings, planned: float, *, vocab_size: int, is_list: bool
) -> dict[str, Any]:
    """Dropout of units, embeddings and recurrent weights, at the given or the `planned` rate."""
    units = _given(settings.dropout, planned)
    # Inputs of a small vocabulary come from a table without dropout; use DropConnect instead.
    inputs, recurrent = (0.0, units) if vocab_size <= SMALL else (units, 0.0)
    if is_list and recurrent and settings.dropout is None:
        units, recurrent = 0.0, round(min(MOST_DROPOUT, LIST_DROP * recurrent), 2)
    return {
        "dropout": units,
        "input_dropout": _given(settings.input_dropout, inputs),
        "weight_drop": _given(settings.weight_drop, recurrent),
    }


def _rate(plan: Plan, trained: float) -> float:
    """Learning rate of a run on `trained` tokens in total."""
    rate = BASE_RATES[plan.optimizer] * math.sqrt(BASE_WIDTH / plan.width)
    if plan.optimizer in ADAPTIVE:
        rate *= CELL_RATES.get(plan.cell, 1.0)
    rate = round(rate, 6)
    if plan.tied and plan.optimizer in ADAPTIVE:
        steps = max(1.0, trained) / (plan.batch * plan.bptt)
        rate = round(rate * min(1.0, math.pow(FULL_RATE_STEPS / steps, 1 / 6)), 6)
    return rate


def _decay(plan: Plan, rate: float, *, tokens: int) -> float:
    """Weight decay for a learning rate and a training text of `tokens`."""
    if plan.optimizer not in ADAPTIVE:
        return DECAY_NOT_ADAPTIVE
    if not (plan.tied and rate):
        return DECAY
    return round(min(MOST_DECAY, plan.batch * plan.bptt / (MEMORY_EPOCHS * tokens * rate)), 4)


def _given(value: Given | None, planned: Given) -> Given:
    return planned if value is None else value
