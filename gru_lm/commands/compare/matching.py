"""Plans for several cells that are to be compared: what is held equal, and at which widths it is.

    time        every cell as the planner has it
    width       all with the first cell's layers, width and embedding
    parameters  all with its layers and embedding, and widths that give all as many parameters
    arithmetic  the same for the weights that a token is multiplied with

Learning rate and dropout are the planner's for each cell at its own width. Knows no run and no figures.
Invariant: what is to be equal agrees within AGREEMENT in every pair of cells.
"""

from __future__ import annotations

import dataclasses
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from gru_lm.commands.train.prepare import Prepared, prepare
from gru_lm.config import Settings
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.planning.model import MOST_EPOCHS
from gru_lm.signals import Stop

AGREEMENT = 0.005  # of the smaller one
READING_SHARE = 0.1  # of a budget: a first reading that took more would have made a smaller plan
SHAPE = ("layers", "embed", "tied", "residual", "softmax")  # what all have alike, beside the width

Size = Callable[[int], float]  # of a model, by its width


def plan_cells(
    chosen: Settings, cells: Sequence[str], *, match: str, stop: Stop
) -> dict[str, Prepared]:
    """What each cell is trained on and how, the first one as `train` would plan it, or very near.

    `match` is one of comparisons.MATCHES. No text may be standard input. Raises as `prepare` does.
    """

    def planned(cell: str, **shape: object) -> Prepared:
        asked = dataclasses.replace(chosen, cell=cell, **shape)  # type: ignore[arg-type]
        started = time.monotonic()
        return prepare(asked, stdin=Path(), source=None, started=started, stop=stop)

    begun = time.monotonic()
    first = planned(cells[0])
    if chosen.minutes and time.monotonic() - begun > READING_SHARE * 60 * chosen.minutes:
        first = planned(cells[0])  # with its tokens in the cache, where every run will find them
    if match == "time":
        return {cells[0]: first} | {cell: planned(cell) for cell in cells[1:]}
    shape = {name: getattr(first.plan, name) for name in SHAPE}
    width = first.plan.width
    widths = [width] * len(cells) if match == "width" else _matched(first, cells, by=match)
    return {
        cell: first if (cell, own) == (cells[0], width) else planned(cell, **{"width": own} | shape)
        for cell, own in zip(cells, widths, strict=True)
    }


def fixed(prepared: Prepared, chosen: Settings) -> Settings:
    """Settings that plan the same again, however fast the machine then is.

    `chosen` are those that `prepared` came of.
    """
    found = prepared.settings
    epochs = found.epochs
    if epochs is None and not (found.steps or found.tokens):
        epochs = MOST_EPOCHS  # the planner's own limit, which else would hang on a new look
    named = (chosen.tokenizer or "").endswith(".model")
    return dataclasses.replace(
        found,
        tokenizer=chosen.tokenizer if named else found.tokenizer,
        vocab_size=chosen.vocab_size,
        epochs=epochs,
    )


def parameters(config: ModelConfig) -> int:
    """`LanguageModel.parameter_count` of a model that takes no memory."""
    with torch.device("meta"):
        return LanguageModel(config).parameter_count()


def _matched(first: Prepared, cells: Sequence[str], *, by: str) -> list[int]:
    plan, config = first.plan, first.model_config()
    seen = int((first.counts_V() > 0).sum())

    def size(cell: str, width: int) -> float:
        if by == "parameters":
            return parameters(dataclasses.replace(config, cell=cell, width=width))
        return dataclasses.replace(plan, cell=cell, width=width).weights(seen)

    sizes = [quadratic(partial(size, cell), apart=plan.embed) for cell in cells]
    return matched_widths(sizes, plan.width)


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


def matched_widths(sizes: Sequence[Size], planned: int) -> list[int]:
    """Widths at which all `sizes` agree in pairs, the first one as near to `planned` as can be.

    From one width to the next, small models grow by more than AGREEMENT: few widths have a match.
    """
    most = 4 * planned + 1024  # where any width has one
    tables = [sorted((size(width), width) for width in range(1, 4 * most)) for size in sizes[1:]]
    for width in sorted(range(1, most), key=lambda width: abs(width - planned)):
        own = sizes[0](width)
        others = [_nearest(table, own) for table in tables]
        all_sizes = [own, *(size for size, _ in others)]
        if max(all_sizes) - min(all_sizes) <= AGREEMENT * min(all_sizes):
            return [width, *(other for _, other in others)]
    raise AssertionError("no widths agree")


def _nearest(table: Sequence[tuple[float, int]], size: float) -> tuple[float, int]:
    """The entry of a sorted table that is nearest to `size`."""
    at = bisect_left(table, (size, 0))
    return min(table[max(0, at - 1) : at + 1], key=lambda entry: abs(entry[0] - size))
