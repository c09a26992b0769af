"""Benchmark of the cells on this machine: training steps, and the forward pass of validation.

Times the code of real runs (`train_steps`, `columns`) on the model planned for a character-level text;
the characters are random, which does not affect speed. Workloads are interleaved in rounds, so that
background load affects all alike. Prints nothing. Invariant: the clock is only read after the device
has finished.
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
from gru_lm.signals import Stop, never, unheard
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.start import fresh_state, rehearsal_steps

CHARACTERS = 65  # distinct characters of an English text
VOCABULARY = 323  # pieces: those characters, 256 fallback bytes, <unk> and </s>
TOKENS = 122 * COLUMN_BATCH * COLUMN_CHUNK  # about a million: a whole number of validation batches
WIDTHS = {
    "cpu": (128, 256, 512),
    "cuda": (256, 512, 1024),
}  # the planner's choice and its neighbours
ROUNDS = 9
MIN_ROUNDS = 3  # even on slow machines


@dataclass(frozen=True)
class Subject:
    """A cell and width to measure, with the plan and model for it."""

    plan: Plan
    config: ModelConfig


@dataclass
class Work:
    """A timed workload: one call of `run` processes `tokens` tokens in about `seconds`."""

    subject: Subject
    kind: str  # "train" or "eval"
    run: Callable[[], object]
    tokens: int
    device: torch.device
    seconds: float = 0.0

    def turn(self, seconds: float, stop: Stop) -> float:
        """Repeat for about `seconds`, at least once; return the elapsed time. Updates `self.seconds`."""
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
    """Tokens per second in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartiles of the rounds."""
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return low, high

    def over(self, other: Rate) -> float:
        """Speed relative to `other`: the median of the ratios per round.

        >>> Rate((2.0, 6.0, 3.0)).over(Rate((1.0, 2.0, 2.0)))
        2.0
        """
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds, strict=True))


@dataclass(frozen=True)
class Speed:
    """Training and evaluation speed of a subject."""

    subject: Subject
    train: Rate
    evaluation: Rate


def subjects(cells: Sequence[str], widths: Sequence[int], device: torch.device) -> list[Subject]:
    """Plan every cell at every width for a text of a million characters.

    Without dropout, which would depend on the training time. Raises UsageError for an unknown cell or
    an impossible width.
    """
    planned = []
    for width, cell in itertools.product(dict.fromkeys(widths), dict.fromkeys(cells)):
        plan = plan_model(
            Settings(cell=cell, width=width, layers=1, dropout=0.0, minutes=DEFAULT_MINUTES),
            tokens=TOKENS,
            vocab_size=CHARACTERS,
            device=device.type,
            precision=fastest_precision(device),
        )
        config = plan.model_config(_counts())
        planned.append(Subject(plan, config))
    return planned


def warm_up(
    chosen: Sequence[Subject],
    *,
    device: torch.device,
    backend: str,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> list[Work]:
    """Create the workloads, training and then evaluation of each subject, and run each one twice.

    `progress` is called with the number of subjects completed. `stop` is polled.
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
            work.turn(0, stop)  # compiles kernels and allocates memory
            work.turn(0, stop)
            works.append(work)
        progress(1)
    return works


def measure(
    works: Sequence[Work],
    *,
    until: float,
    stop: Stop = never,
    progress: Callable[[float], None] = unheard,
) -> list[Speed]:
    """Time the workloads in rounds until time `until` (monotonic clock), for at least MIN_ROUNDS rounds.

    `progress` is called with the completed share of the total. `stop` is polled; whatever it raises is
    passed on.
    """
    left = max(0.0, until - time.monotonic())
    turn = left / (ROUNDS * len(works))
    total = max(left, MIN_ROUNDS * sum(max(turn, work.seconds) for work in works))
    # Workloads that are compared run in succession: the same task for all cells of a width.
    order = sorted(
        range(len(works)), key=lambda i: (works[i].subject.config.width, works[i].kind, i)
    )
    rates: list[list[float]] = [[] for _ in works]
    round_seconds = 0.0
    while len(rates[0]) < MIN_ROUNDS or until - time.monotonic() > round_seconds:
        round_start = time.monotonic()
        for i in order:
            elapsed = works[i].turn(turn, stop)
            rates[i].append(works[i].tokens / works[i].seconds)
            progress(elapsed / total)
        round_seconds = time.monotonic() - round_start
    return [
        Speed(work.subject, Rate(tuple(train)), Rate(tuple(evaluation)))
        for work, train, evaluation in zip(works[::2], rates[::2], rates[1::2], strict=True)
    ]


def machine(device: torch.device, backend: str) -> dict[str, Any]:
    """The hardware and software that the results depend on."""
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
    return np.random.default_rng(0).integers(CHARACTERS, size=TOKENS, dtype=np.uint16)


def _counts() -> torch.Tensor:
    return torch.from_numpy(np.bincount(_characters(), minlength=VOCABULARY))


def _training(state: TrainState, plan: Plan, tokens_N: np.ndarray) -> Iterator[object]:
    """Training steps, indefinitely."""
    steps = rehearsal_steps(state, plan, tokens_N)
    while True:
        state.model.train()
        yield next(steps)


def _evaluating(model: LanguageModel, tokens_N: np.ndarray) -> Iterator[object]:
    """Validation batches, repeating the text indefinitely."""
    while True:
        batches = columns(model, tokens_N, newline_id=0, warm=0)
        for _ in range(TOKENS // (COLUMN_BATCH * COLUMN_CHUNK)):
            model.eval()
            yield next(batches)


def _processor(device: torch.device) -> str:
    """The name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
