"""`make bench`: speed as ratios measured in one run, interleaved and repeated; medians with spreads.

    cells       tokens/s of each cell's layer, forward and backward, over torch.nn's GRU of the same
                size; torch.nn's LSTM beside them
    step        a whole training step over the bare forward and backward of the same model
    validation  tokens/s of validation by columns over the bare forward of the same model

Absolute times mean little on a shared machine; the ratios are taken between neighbours in time.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from gru_lm.evaluation.scoring import validate
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.recurrent import Recurrent, choose_backend
from gru_lm.text.batches import Batches
from gru_lm.training.loop import TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule, make_optimizer

REPEATS = 9
V = 323  # pieces of a character model of English


def interleaved(works: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each work, REPEATS times, all taking turns; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(label: str, seconds: dict[str, list[float]], base: str, tokens: int) -> None:
    """One line a work: tokens/s, and the ratio to `base` with its quartiles."""
    for name, times in seconds.items():
        ratios = sorted(b / t for b, t in zip(seconds[base], times, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = tokens / statistics.median(times)
        print(f"{label:<28}{name:<14}{rate:>12,.0f} {middle:>7.2f}  ({low:.2f}-{high:.2f})")


def stock(kind: type[torch.nn.RNNBase], width: int, batch: int, steps: int) -> Callable[[], None]:
    """Forward and backward of a layer of torch.nn over a sequence."""
    x_TBD = torch.randn(steps, batch, width)
    module = kind(width, width)
    return lambda: module(x_TBD)[0].sum().backward()


def layer(cell: str, width: int, batch: int, steps: int) -> Callable[[], None]:
    """Forward and backward of one of our layers over a sequence."""
    x_TBD = torch.randn(steps, batch, width)
    backend = choose_backend(torch.device("cpu"))
    stack = Recurrent(cell, inputs=width, width=width, layers=1, dropout=0, backend=backend)
    state_LSBH = torch.zeros(1, stack.states, batch, width)
    return lambda: stack(x_TBD, state_LSBH, None)[0].sum().backward()


def bench_cells() -> None:
    for width, batch, steps in itertools.product((128, 256, 512), (24, 64), (64,)):
        works = {
            "nn.GRU": stock(torch.nn.GRU, width, batch, steps),
            "nn.LSTM": stock(torch.nn.LSTM, width, batch, steps),
        }
        works |= {name: layer(name, width, batch, steps) for name in CELLS}
        seconds = interleaved(works)
        show(f"cells, H={width}, B={batch}, T={steps}", seconds, "nn.GRU", batch * steps)


def bench_step_and_validation(width: int) -> None:
    batch, steps = 24, 48
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", vocab_size=V, layers=1, width=width, embed=128)
    model = LanguageModel(config, backend=choose_backend(torch.device("cpu")))
    tokens = np.random.default_rng(0).integers(0, V, 200_000).astype(np.uint16)
    optimizer = make_optimizer(model, "adamw", weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, optimizer, scaler, model.initial_state(batch))
    training = train_steps(
        state,
        Batches(tokens=tokens, batch=batch, bptt=steps, seed=0),
        budget=Budget(steps=10**9, seconds=None),
        schedule=Schedule(kind="constant", lr=1e-6, warmup=0),
        clip=1.0,
        seed=0,
        precision="float32",
        clock=lambda: 0.0,
    )
    x_BT = torch.from_numpy(tokens[: batch * steps].astype(np.int64)).view(batch, steps)

    def bare() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(x_BT, x_BT, model.initial_state(batch))[0].backward()

    seconds = interleaved({"bare": bare, "step": lambda: next(training) and None})
    show(f"step, H={width}", seconds, "bare", batch * steps)

    held_out, wide = tokens[: 64 * 1024], 64
    y_BT = torch.from_numpy(held_out.astype(np.int64)).view(wide, -1)

    def forward() -> None:
        with torch.inference_mode():
            state_LSBH = model.initial_state(wide)
            for piece_BT in y_BT.split(128, dim=1):
                _, state_LSBH = model.target_log_probs(piece_BT, piece_BT, state_LSBH)

    def validation() -> None:
        validate(model, held_out, newline_id=0)

    seconds = interleaved({"bare": forward, "validation": validation})
    show(f"validation, H={width}", seconds, "bare", len(held_out))


def main() -> None:
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}, {REPEATS} rounds")
    print(f"{'':<28}{'':<14}{'tokens/s':>12}   ratio (quartiles)")
    bench_cells()
    for width in (256, 512):
        bench_step_and_validation(width)


if __name__ == "__main__":
    main()
