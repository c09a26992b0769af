"""Tokens a second of cells on this machine: training steps, and the forward pass of validation.

What is timed is what a run does (`train_steps`, `columns`), on the model that it would make for
characters; the characters are random, which changes no speed. The works take turns in rounds, so that
what else the machine does falls on all alike. Knows nothing of terminals and writes nothing. No clock is
read before the device has finished.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gru_lm import __version__
from gru_lm.config import Settings
from gru_lm.evaluation.scoring import COLUMN_BATCH, COLUMN_CHUNK, columns
from gru_lm.model.devices import fastest_precision
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.planning.model import DEFAULT_MINUTES, plan_model
from gru_lm.signals import Stop, never
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.start import fresh_state, rehearsal_steps

SEEN = 65  # characters of an English text
VOCABULARY = 323  # pieces: those, the 256 bytes that spell all others, <unk> and </s>
TOKENS = 122 * COLUMN_BATCH * COLUMN_CHUNK  # about a million, in whole passes of validation
WIDTHS = {
    "cpu": (128, 256, 512),
    "cuda": (256, 512, 1024),
}  # what the planner chooses, and beside it
ROUNDS = 9
FEWEST = 3  # rounds, however slow the machine


@dataclass(frozen=True)
class Subject:
    """A cell at a width, in the model whose speed is measured."""

    plan: Plan
    config: ModelConfig


@dataclass
class Work:
    """What is timed: `run` does it once, on `tokens` tokens, in about `seconds`."""

    subject: Subject
    kind: str  # "train" or "eval"
    run: Callable[[], object]
    tokens: int
    device: torch.device
    seconds: float = 0.0

    def turn(self, seconds: float, stop: Stop) -> float:
        """Do it for about `seconds`, once at least; returns what it took. Notes what a run took."""
        repeats = max(1, int(seconds / self.seconds)) if self.seconds else 1
        self._wait()
        started = time.perf_counter()
        for _ in range(repeats):
            stop()
            self.run()
        self._wait()
        elapsed = time.perf_counter() - started
        self.seconds = elapsed / repeats
        return elapsed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Rate:
    """Tokens a second in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the rounds lie between these."""
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return low, high

    def over(self, other: Rate) -> float:
        """How many times as fast as `other`: the median over rounds, which are neighbours in time.

        >>> Rate((2.0, 6.0, 3.0)).over(Rate((1.0, 2.0, 2.0)))
        2.0
        """
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds, strict=True))


@dataclass(frozen=True)
class Speed:
    """How fast a subject trains and is evaluated."""

    subject: Subject
    train: Rate
    evaluation: Rate


def subjects(cells: Sequence[str], widths: Sequence[int], device: torch.device) -> list[Subject]:
    """Every cell at every width, as planned for a million characters. Raises UsageError.

    Dropout is left out: the plan's depends on how long one trains.
    """
    found = []
    for width, cell in itertools.product(dict.fromkeys(widths), dict.fromkeys(cells)):
        plan = plan_model(
            Settings(cell=cell, width=width, layers=1, dropout=0.0, minutes=DEFAULT_MINUTES),
            tokens=TOKENS,
            vocab_size=SEEN,
            device=device.type,
            precision=fastest_precision(device),
        )
        config = plan.model_config(_counts())
        found.append(Subject(plan, config))
    return found


def warm_up(
    chosen: Sequence[Subject],
    *,
    device: torch.device,
    backend: str,
    stop: Stop = never,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Work]:
    """The works of each subject, training and then evaluation, each done twice.

    `progress` hears of subjects done.
    """
    tokens_N = _characters()
    counts_V = _counts()
    works = []
    for subject in chosen:
        plan = subject.plan
        state = fresh_state(plan, subject.config, counts_V, device=device, backend=backend, seed=0)
        for kind, steps, tokens in (
            ("train", _training(state, plan, tokens_N), plan.batch * plan.bptt),
            ("eval", _evaluating(state.model, tokens_N), COLUMN_BATCH * COLUMN_CHUNK),
        ):
            work = Work(subject, kind, steps.__next__, tokens, device)
            work.turn(0, stop)  # compiles, and takes memory
            work.turn(0, stop)
            works.append(work)
        progress(1)
    return works


def measure(
    works: Sequence[Work],
    *,
    until: float,
    stop: Stop = never,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Speed]:
    """Let works from `warm_up` take turns `until` a time on the monotonic clock; FEWEST rounds at least.

    `progress` hears of shares of the whole. Raises what `stop` raises.
    """
    left = max(0.0, until - time.monotonic())
    turn = left / (ROUNDS * len(works))
    whole = max(left, FEWEST * sum(max(turn, work.seconds) for work in works))
    # Neighbours in time are those that are compared: all cells of a width, doing the same.
    order = sorted(
        range(len(works)), key=lambda i: (works[i].subject.config.width, works[i].kind, i)
    )
    rates: list[list[float]] = [[] for _ in works]
    last = 0.0
    while len(rates[0]) < FEWEST or until - time.monotonic() > last:
        began = time.monotonic()
        for i in order:
            elapsed = works[i].turn(turn, stop)
            rates[i].append(works[i].tokens / works[i].seconds)
            progress(elapsed / whole)
        last = time.monotonic() - began
    return [
        Speed(work.subject, Rate(tuple(train)), Rate(tuple(evaluation)))
        for work, train, evaluation in zip(works[::2], rates[::2], rates[1::2], strict=True)
    ]


def machine(device: torch.device, backend: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(device),
        "system": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "backend": backend,
        "versions": {
            "gru-lm": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _characters() -> npt.NDArray[np.uint16]:
    return np.random.default_rng(0).integers(SEEN, size=TOKENS, dtype=np.uint16)


def _counts() -> torch.Tensor:
    return torch.from_numpy(np.bincount(_characters(), minlength=VOCABULARY))


def _training(state: TrainState, plan: Plan, tokens_N: np.ndarray) -> Iterator[object]:
    """Training steps, for ever."""
    steps = rehearsal_steps(state, plan, tokens_N)
    while True:
        state.model.train()
        yield next(steps)


def _evaluating(model: LanguageModel, tokens_N: np.ndarray) -> Iterator[object]:
    """Passes of validation over the text, for ever."""
    while True:
        passes = columns(model, tokens_N, newline_id=0, warm=0)
        for _ in range(TOKENS // (COLUMN_BATCH * COLUMN_CHUNK)):
            model.eval()
            yield next(passes)


def _processor(device: torch.device) -> str:
    """The name of what does the arithmetic."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
