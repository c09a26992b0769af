"""Plans for several cells that are to be compared: what is one for all, and what is matched.

    time        every cell as the planner has it: size, batch and all
    width       one width for all
    parameters  widths that give all as many parameters
    arithmetic  widths that give all as many weights that a token is multiplied with

But for `time`, all cells have the plan of the reference, the first of them in the table of cells (the
GRU, if it is there): they differ in width and in learning rate, which is the planner's for each cell.
Minutes become the steps that the slowest cell makes in them, so that all train on the same tokens. The
order in which cells are named changes nothing. Knows no run and no figures.
"""

from __future__ import annotations

import dataclasses
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gru_lm.commands.compare.directory import OWN
from gru_lm.commands.train.clock import Spent
from gru_lm.commands.train.prepare import Prepared, plan_for, prepare
from gru_lm.config import BUDGETS, Settings
from gru_lm.errors import UsageError
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.options import Shape, names
from gru_lm.planning.model import MOST_EPOCHS
from gru_lm.signals import Stop

AGREEMENT = 0.005  # of the smaller one, where widths are the planner's to choose
READING_SHARE = 0.1  # of a budget: a first reading that took more would have made a smaller plan
VALIDATIONS = 10  # of a run
VALIDATION_SHARE = 0.05  # of the time for training, at most, but for the last
# What of the reference's plan is decided before it is known how much of the text is seen.
SHAPE = (
    *(name for name in names(Shape) if name not in ("cell", "width")),
    *("softmax", "batch", "bptt", "optimizer", "precision"),
)

# How much of the text is used.
PART = ("characters", "valid_characters", "tokenizer_characters")

Size = Callable[[int], float]  # of a model, by its width


def plan_cells(
    config: Settings, cells: Sequence[str], *, match: str, stop: Stop
) -> dict[str, Prepared]:
    """What each cell is trained on and how; the reference as `train` would plan it, or very near.

    `match` is one of directory.MATCHES. A width that is given is the reference's. No text may be
    standard input. Raises as `prepare` does.
    """
    reference, *others = (cell for cell in CELLS if cell in cells)

    def first_planned() -> tuple[Prepared, float]:
        started = time.monotonic()
        asked = dataclasses.replace(config, cell=reference)
        prepared = prepare(asked, stdin=Path(), source=None, started=started, stop=stop)
        return prepared, time.monotonic() - started

    first, seconds = first_planned()
    if config.minutes and seconds > READING_SHARE * 60 * config.minutes:
        first, _ = first_planned()  # with its tokens in the cache, where every run will find them

    def planned(cell: str, budget: Settings = config, **given: Any) -> Prepared:
        """The plan of a cell for the same tokens, where not given."""
        part = {name: getattr(first.settings, name) for name in PART}
        return plan_for(
            dataclasses.replace(budget, cell=cell, **part, **given),
            first.data,
            device=first.device,
            source=None,
            spent=Spent(time.monotonic() - first.read_seconds),
            stop=stop,
        )

    if match == "time":
        return {reference: first} | {cell: planned(cell) for cell in others}
    shape = {name: getattr(first.plan, name) for name in SHAPE}
    widths = _widths(first, [reference, *others], match=match, given=config.width is not None)
    budget = config
    if config.minutes:
        tried = [
            first
            if (cell, width) == (reference, first.plan.width)
            else planned(cell, width=width, **shape)
            for cell, width in widths.items()
        ]
        budget = in_steps(config, tried)
    if budget is not config or widths[reference] != first.plan.width:
        first = planned(reference, budget, width=widths[reference], **shape)
    common = {
        name: value for name, value in dataclasses.asdict(first.plan).items() if name not in OWN
    }
    return {reference: first} | {
        cell: planned(cell, budget, width=widths[cell], **common) for cell in others
    }


def mismatch(prepared: Mapping[str, Prepared], *, match: str) -> float:
    """By what share the largest of the cells exceeds the smallest in what is matched."""
    if match not in ("parameters", "arithmetic"):
        return 0.0
    sizes = [
        parameters(each.model_config()) if match == "parameters" else each.plan.weights(_seen(each))
        for each in prepared.values()
    ]
    return max(sizes) / min(sizes) - 1


def fixed(prepared: Prepared, config: Settings) -> Settings:
    """Settings that plan the same again, however fast the machine then is.

    `config` are the settings that `prepared` was made from.
    """
    found = prepared.settings
    epochs = found.epochs
    if epochs is None and not (found.steps or found.tokens):
        epochs = MOST_EPOCHS  # the planner's own limit, which else would hang on a new look
    named = (config.tokenizer or "").endswith(".model")
    return dataclasses.replace(
        found,
        tokenizer=config.tokenizer if named else found.tokenizer,
        vocab_size=config.vocab_size,
        epochs=epochs,
    )


def parameters(config: ModelConfig) -> int:
    """`LanguageModel.parameter_count` of a model that takes no memory."""
    with torch.device("meta"):
        return LanguageModel(config).parameter_count()


def in_steps(config: Settings, tried: Sequence[Prepared]) -> Settings:
    """The settings with minutes as the steps that the slowest of the cells makes in them.

    Raises UsageError where that is none.
    """
    tokens = min(
        each.plan.tokens(
            each.settings,
            tokens=len(each.data.train.tokens),
            per_second=each.forecast.tokens_per_second or 0.0,
            elapsed=each.read_seconds,
        )
        for each in tried
        if each.forecast
    )
    plan, held_out = tried[0].plan, len(tried[0].data.valid.tokens)
    steps = int(tokens / (plan.batch * plan.bptt))
    if not steps:
        seconds = max(each.read_seconds for each in tried)
        raise UsageError(
            f"no step fits into --minutes {config.minutes:g}",
            why=f"to read and tokenize the text takes {seconds:.0f} s of it",
            hint="more --minutes, or --steps N",
        )
    # Scoring a token takes a third of the time of training on it.
    validations = int(3 * VALIDATION_SHARE * tokens / held_out)
    every = math.ceil(steps / max(1, min(VALIDATIONS, validations)))
    budget: dict[str, Any] = {**dict.fromkeys(BUDGETS), "steps": steps}
    return dataclasses.replace(config, **budget, eval_every=config.eval_every or every)


def _widths(first: Prepared, cells: Sequence[str], *, match: str, given: bool) -> dict[str, int]:
    """The width of each of the cells, of which `first` is the first; kept where it was given."""
    plan, config = first.plan, first.model_config()
    if match == "width":
        return dict.fromkeys(cells, plan.width)

    def size(cell: str, width: int) -> float:
        if match == "parameters":
            return parameters(dataclasses.replace(config, cell=cell, width=width))
        return dataclasses.replace(plan, cell=cell, width=width).weights(_seen(first))

    sizes = [quadratic(partial(size, cell), apart=plan.embed) for cell in cells]
    agreement = math.inf if given else AGREEMENT
    return dict(zip(cells, matched_widths(sizes, plan.width, agreement=agreement), strict=True))


def _seen(prepared: Prepared) -> int:
    """Pieces that occur in the training text."""
    return int((prepared.counts_V() > 0).sum())


def quadratic(size: Size, *, apart: int) -> Size:
    """The same function from four of its values: it is quadratic in the width, but at `apart`.

    That is the width of the embedding, where a tied model needs no projection from one to the other.
    """
    start, own = apart + 1, size(apart)
    values = [size(start + step) for step in range(3)]
    slope, bend = values[1] - values[0], values[2] - 2 * values[1] + values[0]

    def found(width: int) -> float:
        steps = width - start
        return (
            own if width == apart else values[0] + steps * slope + steps * (steps - 1) // 2 * bend
        )

    return found


def matched_widths(
    sizes: Sequence[Size], planned: int, *, agreement: float = AGREEMENT
) -> list[int]:
    """Widths at which all `sizes` agree in pairs, the first one as near to `planned` as can be.

    From one width to the next, small models grow by more than AGREEMENT: few widths have a match.
    """
    most = 4 * planned + 1024  # where any width has one
    tables = [sorted((size(width), width) for width in range(1, 4 * most)) for size in sizes[1:]]
    for width in sorted(range(1, most), key=lambda width: abs(width - planned)):
        own = sizes[0](width)
        others = [_nearest(table, own) for table in tables]
        all_sizes = [own, *(size for size, _ in others)]
        if max(all_sizes) - min(all_sizes) <= agreement * min(all_sizes):
            return [width, *(other for _, other in others)]
    raise AssertionError("no widths agree")


def _nearest(table: Sequence[tuple[float, int]], size: float) -> tuple[float, int]:
    """The entry of a sorted table that is nearest to `size`."""
    at = bisect_left(table, (size, 0))
    return min(table[max(0, at - 1) : at + 1], key=lambda entry: abs(entry[0] - size))
