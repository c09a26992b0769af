"""Plans for the cells of a comparison, matched in one of these:

    time        training time; every cell has its own plan
    width       width
    parameters  number of parameters
    arithmetic  weights multiplied with per token

Except for `time`, all cells share the plan of the reference cell, the first one in the table of cells
(the GRU, if present), and differ only in width and in the planner's learning rate. Minutes are converted
to the number of steps of the slowest cell, so that all train on the same tokens. The order of the cells
does not matter. Knows no runs or results.
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

AGREEMENT = 0.005  # relative tolerance, if the planner chooses the widths
READING_SHARE = 0.1  # of the budget: if reading takes longer, plan again with the tokens cached
VALIDATIONS = 10  # per run
VALIDATION_SHARE = 0.05  # of the training time, at most, without the final validation
# Settings of the reference's plan that do not depend on the number of training tokens.
SHAPE = (
    *(name for name in names(Shape) if name not in ("cell", "width")),
    *("softmax", "batch", "bptt", "optimizer", "precision"),
)

# Settings for the amount of text used.
PART = ("characters", "valid_characters", "tokenizer_characters")

Size = Callable[[int], float]  # size of a model as a function of its width


def plan_cells(
    config: Settings, cells: Sequence[str], *, match: str, stop: Stop
) -> dict[str, Prepared]:
    """Plan all cells; the plan of the reference is that of `train`, or very close to it.

    `match` is one of directory.MATCHES. A given width is that of the reference. Texts must not include
    standard input. Raises as `prepare` does.
    """
    reference, *others = (cell for cell in CELLS if cell in cells)

    def first_planned() -> tuple[Prepared, float]:
        started = time.monotonic()
        asked = dataclasses.replace(config, cell=reference)
        prepared = prepare(asked, stdin=Path(), source=None, started=started, stop=stop)
        return prepared, time.monotonic() - started

    first, seconds = first_planned()
    config = dataclasses.replace(config, records=first.settings.records)  # recognised only once
    if config.minutes and seconds > READING_SHARE * 60 * config.minutes:
        first, _ = first_planned()  # tokens are now cached, as they will be for every run

    def planned(cell: str, budget: Settings = config, **given: Any) -> Prepared:
        """The plan of a cell for the same tokens, with settings fixed to those in `given`."""
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
    """Relative excess of the largest cell over the smallest in the matched quantity."""
    if match not in ("parameters", "arithmetic"):
        return 0.0
    sizes = [
        parameters(each.model_config()) if match == "parameters" else each.plan.weights(_seen(each))
        for each in prepared.values()
    ]
    return max(sizes) / min(sizes) - 1


def fixed(prepared: Prepared, config: Settings) -> Settings:
    """Settings that reproduce the plan regardless of the speed of the machine.

    `config` are the settings that `prepared` was planned from.
    """
    complete = prepared.settings
    epochs = complete.epochs
    if epochs is None and not (complete.steps or complete.tokens):
        epochs = MOST_EPOCHS  # the planner's limit, which otherwise depends on the measured speed
    named = (config.tokenizer or "").endswith(".model")
    return dataclasses.replace(
        complete,
        tokenizer=config.tokenizer if named else complete.tokenizer,
        vocab_size=config.vocab_size,
        epochs=epochs,
    )


def parameters(config: ModelConfig) -> int:
    """`LanguageModel.parameter_count` for a config, computed without allocating memory."""
    with torch.device("meta"):
        return LanguageModel(config).parameter_count()


def in_steps(config: Settings, tried: Sequence[Prepared]) -> Settings:
    """The settings with minutes replaced by the number of steps of the slowest cell in that time.

    Raises UsageError if there is no time for a step.
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
            why=f"reading and tokenizing the text takes {seconds:.0f} s of that",
            hint="a larger --minutes, or --steps N",
        )
    # Scoring takes a third of the time of training per token.
    validations = int(3 * VALIDATION_SHARE * tokens / held_out)
    every = math.ceil(steps / max(1, min(VALIDATIONS, validations)))
    budget: dict[str, Any] = {**dict.fromkeys(BUDGETS), "steps": steps}
    return dataclasses.replace(config, **budget, eval_every=config.eval_every or every)


def _widths(first: Prepared, cells: Sequence[str], *, match: str, given: bool) -> dict[str, int]:
    """The width of each cell. `first` is the plan of the first, whose width is kept if `given`."""
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
    """Number of distinct pieces in the training text."""
    return int((prepared.counts_V() > 0).sum())


def quadratic(size: Size, *, apart: int) -> Size:
    """`size`, interpolated from four values: it is quadratic in the width, except at `apart`.

    `apart` is the width of the embedding, at which a tied model needs no projection between the two.
    """
    start, exception = apart + 1, size(apart)
    values = [size(start + step) for step in range(3)]
    slope, bend = values[1] - values[0], values[2] - 2 * values[1] + values[0]

    def interpolated(width: int) -> float:
        steps = width - start
        if width == apart:
            return exception
        return values[0] + steps * slope + steps * (steps - 1) // 2 * bend

    return interpolated


def matched_widths(
    sizes: Sequence[Size], planned: int, *, agreement: float = AGREEMENT
) -> list[int]:
    """Widths at which all `sizes` agree within `agreement`, the first as close to `planned` as possible.

    Between successive widths, small models grow by more than AGREEMENT, so few widths have a match.
    """
    most = 4 * planned + 1024  # large enough that some width has a match
    tables = [sorted((size(width), width) for width in range(1, 4 * most)) for size in sizes[1:]]
    for width in sorted(range(1, most), key=lambda width: abs(width - planned)):
        own = sizes[0](width)
        others = [_nearest(table, own) for table in tables]
        all_sizes = [own, *(size for size, _ in others)]
        if max(all_sizes) - min(all_sizes) <= agreement * min(all_sizes):
            return [width, *(other for _, other in others)]
    raise AssertionError("no matching widths")


def _nearest(table: Sequence[tuple[float, int]], size: float) -> tuple[float, int]:
    """The entry of a sorted table closest to `size`."""
    at = bisect_left(table, (size, 0))
    return min(table[max(0, at - 1) : at + 1], key=lambda entry: abs(entry[0] - size))
