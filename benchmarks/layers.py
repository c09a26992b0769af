"""Rows 1 to 4 and 12: forward and backward pass of one layer, against torch.nn and peak throughput.

Gradients include that of the input, as inside a model. All workloads run in one process with the memory
settings of gru-lm, which speed up torch.nn too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.report import Row
from benchmarks.timing import Timings, Work, geometric_mean
from gru_lm.model.cells import CELLS
from gru_lm.model.devices import choose_backend
from gru_lm.model.recurrent import Recurrent

WIDTHS, BATCHES, STEPS = (128, 256, 512, 1024), (16, 32, 64), 64
RECORDS = (8, 24)  # tokens in a record, in rows of PACKED_STEPS tokens
PACKED_BATCH, PACKED_STEPS = 24, 48
SIDE = 2048  # of the matrices whose product defines peak throughput


def stock(kind: type[torch.nn.RNNBase], width: int, batch: int) -> Work:
    """Forward and backward pass of a torch.nn layer over a sequence."""
    x_TBD = torch.randn(STEPS, batch, width, requires_grad=True)
    module = kind(width, width)
    return _passes(lambda: module(x_TBD)[0], (x_TBD, *module.parameters()))


def layer(
    cell: str, width: int, batch: int, *, steps: int = STEPS, starts_TB: Tensor | None = None
) -> Work:
    """Forward and backward pass of a gru-lm layer over a sequence, reset at `starts_TB`."""
    x_TBD = torch.randn(steps, batch, width, requires_grad=True)
    backend = choose_backend(torch.device("cpu"))
    stack = Recurrent(cell, inputs=width, width=width, layers=1, backend=backend)
    state_LSBH = torch.zeros(1, stack.states, batch, width)
    leaves = (x_TBD, *stack.parameters())
    return _passes(lambda: stack(x_TBD, state_LSBH, None, None, starts_TB)[0], leaves)


def records(cell: str, width: int, size: int) -> Work:
    """The same over records of `size` tokens, one after the other in each row."""
    starts_TB = torch.zeros(PACKED_STEPS, PACKED_BATCH, dtype=torch.bool)
    starts_TB[::size] = True
    return layer(cell, width, PACKED_BATCH, steps=PACKED_STEPS, starts_TB=starts_TB)


def _passes(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Work:
    """Forward and backward pass with newly allocated gradients, as in a training step."""

    def work() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().sum().backward()

    return work


def peak() -> Work:
    """A large matrix product by PyTorch."""
    a, b, c = (torch.randn(SIDE, SIDE) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


def rows() -> Iterator[Row]:
    """One detail row per shape, then one row per figure."""
    over: dict[str, list[float]] = {"lstm": [], "gru": [], "before": [], "share": []}
    for width, batch in itertools.product(WIDTHS, BATCHES):
        works = {"nn.GRU": stock(torch.nn.GRU, width, batch)}
        works |= {"nn.LSTM": stock(torch.nn.LSTM, width, batch)}
        works |= {name: layer(name, width, batch) for name in ("gru", "gru-before")}
        timings = Timings(works | {"peak": peak()})
        # 2 operations per multiply-add, 3 gates, 2 matrices (input and state), 3 passes (backward
        # counts 2).
        operations = 2 * 3 * 2 * 3 * width * width * batch * STEPS
        times = operations / (2 * SIDE**3)
        lstm, gru = timings.ratio("gru", "nn.LSTM"), timings.ratio("gru", "nn.GRU")
        before, share = (
            timings.ratio("gru-before", "gru"),
            timings.ratio("gru", "peak", per_call=times),
        )
        for name, ratio in (("lstm", lstm), ("gru", gru), ("before", before)):
            over[name].append(ratio.median)
        if width >= 256 and batch == 64:
            over["share"].append(share.median)
        tokens = batch * STEPS
        yield Row(
            "",
            f"H {width}, B {batch}: gru/nn.LSTM {lstm}, gru/nn.GRU {gru}, gru-before/gru {before}, "
            f"share of peak {share}",
            details={
                "width": width,
                "batch": batch,
                "tokens_per_second": {name: tokens / timings.seconds(name) for name in works},
                "peak_gflops": 2 * SIDE**3 / timings.seconds("peak") / 1e9,
            },
        )
    for number, name, label, mean_bar, worst_bar in (
        ("1", "lstm", "gru over nn.LSTM", 1.25, 1.10),
        ("2", "gru", "gru over nn.GRU", 1.6, 1.25),
    ):
        yield Row(number, f"{label}, geometric mean", geometric_mean(over[name]), bar=mean_bar)
        yield Row(number, f"{label}, worst", min(over[name]), bar=worst_bar)
    yield Row("3", "gru-before over gru, geometric mean", geometric_mean(over["before"]), bar=0.85)
    yield Row("3", "gru-before over gru, worst", min(over["before"]), bar=0.85)
    yield Row("4", "gru, share of sgemm's peak, worst", min(over["share"]), bar=0.80)


def other_cells() -> Iterator[Row]:
    """Speed of every cell relative to torch.nn.LSTM, for two shapes."""
    for width, batch in ((256, 32), (512, 32)):
        works = {"nn.LSTM": stock(torch.nn.LSTM, width, batch)}
        works |= {name: layer(name, width, batch) for name in CELLS}
        timings = Timings(works)
        ratios = ", ".join(f"{name} {timings.ratio(name, 'nn.LSTM')}" for name in CELLS)
        yield Row("", f"H {width}, B {batch}, over nn.LSTM: {ratios}")


def resets() -> Iterator[Row]:
    """Speed over short records relative to running text, for every cell."""
    found: list[float] = []
    for cell, width in itertools.product(CELLS, (128, 512)):
        works = {"text": layer(cell, width, PACKED_BATCH, steps=PACKED_STEPS)}
        works |= {f"records of {size}": records(cell, width, size) for size in RECORDS}
        timings = Timings(works)
        ratios = {name: timings.ratio(name, "text") for name in works if name != "text"}
        found += [ratio.median for ratio in ratios.values()]
        shown = ", ".join(f"{name} {ratio}" for name, ratio in ratios.items())
        yield Row("", f"{cell}, H {width}, over running text: {shown}")
    yield Row("12", "records over running text, geometric mean", geometric_mean(found), bar=0.9)
