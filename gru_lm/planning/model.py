"""From a text, a budget and the speed of this machine to the settings nobody gave.

Printed before it is used; every choice can be overridden by its flag. Knows no files and makes no model:
how fast a plan trains here it asks whoever can try. What the numbers rest on is in docs/planner.md.

    size        the largest model that the budget can show enough tokens, TOKENS_PER_WEIGHT of them for
                each weight it multiplies with; a token seen again counts less each time
    streams     few streams of short steps give many updates; twice as many where each costs much
    optimizer   Muon, which needs far fewer tokens than AdamW
    lr          falls with the root of the width; where inputs and outputs are tied, with the steps too
    decay       of weights: 0.1, or where they are tied, so that they forget what is some epochs ago
    softmax     adaptive where there are so many pieces that a full one is most of the arithmetic
    dropout     none while the text is new, more the more often it will be seen and the larger the model
                is beside it; of units, and of recurrent weights or embeddings. So often as MOST_EPOCHS,
                a run ends before its time
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from gru_lm.config import Settings
from gru_lm.errors import InputError, UsageError, unknown_name
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import SMALL
from gru_lm.training.plan import Plan

DEFAULT_CELL = "gru"
DEFAULT_OPTIMIZER = "muon"
ADAPTIVE = ("adamw", "muon")  # whose steps are as large as the rate, whatever the gradient
DEFAULT_MINUTES = 5.0
MOST_PIECES_UNTIED = 4096
# Beyond, an adaptive softmax learns more a minute. Measured on a CPU; on CUDA, where products are cheap
# and the clusters' small ones are not, a guess.
MOST_PIECES_FULL = {"cpu": 3000, "cuda": 32_768}
# Weights that are multiplied with, times tokens, trained a second: a first guess, before it is tried.
WEIGHTS_PER_SECOND = {"cpu": 2.5e10, "cuda": 1e12}
TOKENS_PER_WEIGHT = 4.0  # that a model of the right size sees
REPEATS = 15.4  # what endless passes are worth beside the first (Muennighoff et al. 2023)
# Layers and width. A second layer is worth more than a wider first one from about 128 on.
SIZES = (
    *((1, width) for width in (64, 96, 128)),
    *(
        (2, width)
        for width in (128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
    ),
)
TRIALS = 3  # of a plan's speed, a second each
# How well a text could be learnt by heart: the epochs, times the root of the model's weights for each
# token of the text. So much needs no dropout; so much more is dropped at each doubling. Where words
# share one matrix it is needed sooner.
FRESH, DROPOUT = 12.0, 0.115
FRESH_TIED, DROPOUT_TIED = 5.0, 0.066
MOST_EPOCHS = 60.0  # more only learn the text by heart
LEAST_DROPOUT, MOST_DROPOUT = 0.05, 0.5  # less made no difference
# AdamW's weights remember 1 / (rate · decay) of its steps. Those of a tied matrix should remember so
# many epochs, whatever the rate and the text (Wang and Aitchison 2024); twice MOST_DECAY was too much.
# Where no matrix is tied, as for characters, DECAY was best.
MEMORY = 1.25
DECAY, MOST_DECAY = 0.1, 0.3
BRIEF = 2000  # steps that a tied matrix learns in at the full rate; then by the sixth root less
# AdamW's memory of squared gradients. The long one moves rows of rare words far each time they are met:
# they are learnt from fewer examples, and by heart where the same ones come again.
BETA2_NEW, BETA2_OFTEN = 0.999, 0.99
OFTEN = 2.0  # epochs
STREAMS = {"cpu": 24, "cuda": 64}
# Where time counts and text is new, fewer steps: each moves all rows of a tied matrix.
MANY_STREAMS = {"cpu": 48, "cuda": 64}
BPTT = 48


def plan_budget(settings: Settings) -> Settings:
    """Five minutes where no budget is given."""
    if settings.minutes or settings.epochs or settings.steps or settings.tokens:
        return settings
    return dataclasses.replace(settings, minutes=DEFAULT_MINUTES)


def plan_like(settings: Settings, model: Mapping[str, Any]) -> Settings:
    """`settings` with the shape of another run's `model`, to start from its weights.

    Raises UsageError where they say otherwise themselves.
    """
    shape = {name: model[name] for name in ("cell", "layers", "width", "embed", "tied", "residual")}
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

    `vocab_size` counts the pieces that occur. `speed` gives the tokens that a plan trains on a second;
    without it, and where only steps count, that is guessed. `precision` is the fastest that is good
    enough there; `elapsed` seconds of the budget are gone.
    """
    if settings.cell not in (None, *CELLS):
        raise unknown_name("cell", settings.cell or "", CELLS)
    settings = dataclasses.replace(settings, precision=settings.precision or precision)
    weights_per_second = WEIGHTS_PER_SECOND[device]
    tried: dict[tuple[int, int], tuple[Plan, float]] = {}
    while True:
        plan, seen = _sized(
            settings,
            tokens=tokens,
            vocab_size=vocab_size,
            device=device,
            weights_per_second=weights_per_second,
            elapsed=elapsed,
        )
        if speed and settings.minutes:
            size = plan.layers, plan.width
            if size not in tried and len(tried) < TRIALS:
                tried[size] = plan, speed(plan)
                weights_per_second = tried[size][1] * plan.weights(vocab_size)
                continue
            plan, per_second = tried.get(size, [*tried.values()][-1])
            seen = plan.tokens(settings, tokens=tokens, per_second=per_second, elapsed=elapsed)
        return _completed(settings, plan, seen=seen, tokens=tokens, vocab_size=vocab_size)


def _sized(
    settings: Settings,
    *,
    tokens: int,
    vocab_size: int,
    device: str,
    weights_per_second: float,
    elapsed: float,
) -> tuple[Plan, float]:
    """The largest model that the budget has time for, and the tokens it sees then."""
    # Where time does not count, still no larger a model than the usual time carries.
    timed = settings
    if not settings.minutes:
        timed, elapsed = dataclasses.replace(settings, minutes=DEFAULT_MINUTES), 0.0
    chosen = None
    for layers, width in SIZES:
        plan = _shaped(
            settings,
            layers=layers,
            width=width,
            tokens=tokens,
            vocab_size=vocab_size,
            device=device,
        )
        weights = plan.weights(vocab_size)
        per_second = weights_per_second / weights
        seen = plan.tokens(timed, tokens=tokens, per_second=per_second, elapsed=elapsed)
        if chosen and weights * TOKENS_PER_WEIGHT > worth(seen, tokens):
            break
        chosen = plan, plan.tokens(settings, tokens=tokens, per_second=per_second, elapsed=elapsed)
    assert chosen is not None
    plan, seen = chosen
    if plan.tied and seen <= OFTEN * tokens and settings.minutes and not settings.batch:
        many = min(MANY_STREAMS[device], tokens // (4 * plan.bptt))
        plan = dataclasses.replace(plan, batch=max(plan.batch, many))
    return plan, seen


def worth(seen: float, tokens: int) -> float:
    """What `seen` tokens of a text of `tokens` are worth, in new ones: each pass less than the last.

    Muennighoff et al. 2023, "Scaling data-constrained language models", equation 5.

    >>> round(worth(1e6, 2_000_000)), round(worth(4e6, 1_000_000)), round(worth(1e9, 1_000_000))
    (1000000, 3725878, 16400000)
    """
    again = max(0.0, seen / tokens - 1)
    return min(seen, tokens) + tokens * REPEATS * (1 - math.exp(-again / REPEATS))


def _shaped(
    settings: Settings, *, layers: int, width: int, tokens: int, vocab_size: int, device: str
) -> Plan:
    """A plan of this size, where the settings do not say otherwise; as yet without dropout."""
    width, layers = settings.width or width, settings.layers or layers
    softmax = settings.softmax
    if softmax == "auto":
        many = vocab_size > MOST_PIECES_FULL[device] and settings.tied is not False
        softmax = "adaptive" if many else "full"
    # An untied embedding of a small vocabulary needs few dimensions; a large one is worth sharing.
    tied = softmax == "adaptive" or vocab_size > MOST_PIECES_UNTIED
    tied = tied if settings.tied is None else settings.tied
    bptt = settings.bptt or max(1, min(BPTT, tokens // max(16, settings.batch or 0)))
    batch = settings.batch or max(1, min(STREAMS[device], tokens // (4 * bptt)))
    if batch * bptt > tokens:
        raise InputError(
            f"the training text is too short: {tokens:,} tokens",
            why=f"{batch} streams of {bptt} steps need {batch * bptt:,}",
            hint="add text, or a smaller --batch or --bptt",
        )
    # Momentum of 0.9 makes a step ten times as long.
    optimizer = settings.optimizer or DEFAULT_OPTIMIZER
    rate = {"adamw": 5e-3, "muon": 5e-3, "sgd": 1.0, "nt-asgd": 10.0}[optimizer]
    decay = DECAY if optimizer in ADAPTIVE else 1.2e-6  # beside rates of 1 and 10
    assert settings.precision is not None
    return Plan(
        precision=settings.precision,
        optimizer=optimizer,
        cell=settings.cell or DEFAULT_CELL,
        layers=layers,
        width=width,
        embed=settings.embed or (width if tied else min(width, 128)),
        tied=tied,
        residual=layers > 1 if settings.residual is None else settings.residual,
        softmax=softmax,
        dropout=settings.dropout or 0.0,
        batch=batch,
        bptt=bptt,
        lr=round(rate * (256 / width) ** 0.5, 6) if settings.lr is None else settings.lr,
        weight_decay=decay if settings.weight_decay is None else settings.weight_decay,
        beta2=BETA2_NEW if settings.beta2 is None else settings.beta2,
        output_dropout=settings.output_dropout,
        embedding_dropout=settings.embedding_dropout or 0.0,
        locked=settings.locked is not False,
        ar=settings.ar or 0.0,
        tar=settings.tar or 0.0,
    )


def _completed(
    settings: Settings, plan: Plan, *, seen: float, tokens: int, vocab_size: int
) -> Plan:
    """The plan with dropout, rate and decay for a text of which so much will be seen."""
    epochs, most = seen / tokens, settings.epochs
    if epochs > MOST_EPOCHS and not (settings.epochs or settings.steps or settings.tokens):
        seen, most = MOST_EPOCHS * tokens, MOST_EPOCHS
    by_heart = min(epochs, MOST_EPOCHS) * (plan.held(vocab_size) / tokens) ** 0.5
    fresh, more = (FRESH_TIED, DROPOUT_TIED) if plan.tied else (FRESH, DROPOUT)
    planned = round(min(MOST_DROPOUT, more * math.log2(max(1.0, by_heart / fresh))), 2)
    planned = planned if planned >= LEAST_DROPOUT else 0.0
    dropout = planned if settings.dropout is None else settings.dropout
    # A small vocabulary is read from a table, which is faster and has no room for dropout; its
    # weights are dropped instead.
    inputs, weight_drop = (0.0, dropout) if vocab_size <= SMALL else (dropout, 0.0)
    weight_drop = weight_drop if settings.weight_drop is None else settings.weight_drop
    inputs = inputs if settings.input_dropout is None else settings.input_dropout
    lr, decay, step = plan.lr, plan.weight_decay, plan.batch * plan.bptt
    if plan.tied and plan.optimizer in ADAPTIVE:
        if settings.lr is None:
            lr = round(lr * min(1.0, (BRIEF * step / max(1.0, seen)) ** (1 / 6)), 6)
        if settings.weight_decay is None and lr:
            decay = round(min(MOST_DECAY, step / (MEMORY * tokens * lr)), 4)
    beta2 = BETA2_OFTEN if settings.beta2 is None and epochs > OFTEN else plan.beta2
    return dataclasses.replace(
        plan,
        lr=lr,
        weight_decay=decay,
        beta2=beta2,
        dropout=dropout,
        weight_drop=weight_drop,
        input_dropout=inputs,
        epochs=most,
    )
