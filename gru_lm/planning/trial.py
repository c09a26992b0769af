"""Measures the training speed of a plan on this machine by a few real steps, discarding the result.

Takes a fresh state and a plan; independent of runs and budgets.
"""

from __future__ import annotations

import numpy as np

from gru_lm.errors import DivergedError
from gru_lm.signals import Stop
from gru_lm.text.record_batches import RecordTokens
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.start import rehearsal_steps

SECONDS = 0.6  # minimum duration of the timed steps
WARM_UP = 3  # untimed first steps, which compile kernels and allocate memory
MIN_STEPS = 3
TIME_LIMIT = 5.0  # seconds after which the last step alone is the result


def tokens_per_second(
    state: TrainState,
    plan: Plan,
    tokens_N: np.ndarray | RecordTokens,
    *,
    clip: float,
    seed: int,
    stop: Stop,
) -> float:
    """Return training tokens per second, from a fresh `state`, which is modified.

    `stop` is polled before each step; whatever it raises is passed on. Raises DivergedError.
    """
    try:
        durations = _durations(state, plan, tokens_N, clip=clip, seed=seed, stop=stop)
    except DivergedError as error:
        error.why = "while measuring the speed, before training; nothing was written"
        error.hint = plan.remedy(
            "--precision float32, or a budget in --steps, which needs no trial"
        )
        raise
    # The lower quartile: other processes only slow steps down, and usually for a short time.
    return plan.batch * plan.bptt / sorted(durations)[len(durations) // 4]


def _durations(
    state: TrainState,
    plan: Plan,
    tokens_N: np.ndarray | RecordTokens,
    *,
    clip: float,
    seed: int,
    stop: Stop,
) -> list[float]:
    """The seconds of each timed step."""
    steps = rehearsal_steps(state, plan, tokens_N, clip=clip, seed=seed)
    durations: list[float] = []
    while sum(durations[WARM_UP:]) < SECONDS or len(durations) < WARM_UP + MIN_STEPS:
        stop()
        durations.append(next(steps).seconds)
        if len(durations) > 1 and sum(durations) > TIME_LIMIT:
            return durations[-1:]
    return durations[WARM_UP:]
