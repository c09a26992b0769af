"""How fast a plan trains on this machine: some real steps, of which nothing is kept.

Takes a fresh state and a plan; knows neither run nor budget.
"""

from __future__ import annotations

import numpy as np

from gru_lm.errors import DivergedError
from gru_lm.signals import Stop
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.start import rehearsal_steps

SECONDS = 0.6  # of steps that are timed
WARM_UP = 3  # steps before: they compile, and take memory
FEWEST = 3
LONG = 5.0  # seconds of steps after which the last one alone says enough


def tokens_per_second(
    state: TrainState, plan: Plan, tokens_N: np.ndarray, *, clip: float, seed: int, stop: Stop
) -> float:
    """Training tokens a second from a fresh `state`, which is used up.

    Raises what `stop` raises, and DivergedError.
    """
    try:
        taken = _timed(state, plan, tokens_N, clip=clip, seed=seed, stop=stop)
    except DivergedError as error:
        error.why = "in the trial of this machine's speed, before training; nothing was written"
        error.hint = plan.remedy(
            "--precision float32, or a budget in --steps, which needs no trial"
        )
        raise
    # What else the machine does only ever slows a step down, and will not go on for ever.
    return plan.batch * plan.bptt / sorted(taken)[len(taken) // 4]


def _timed(
    state: TrainState, plan: Plan, tokens_N: np.ndarray, *, clip: float, seed: int, stop: Stop
) -> list[float]:
    """The seconds of some steps."""
    steps = rehearsal_steps(state, plan, tokens_N, clip=clip, seed=seed)
    taken: list[float] = []
    while sum(taken[WARM_UP:]) < SECONDS or len(taken) < WARM_UP + FEWEST:
        stop()
        taken.append(next(steps).seconds)
        if len(taken) > 1 and sum(taken) > LONG:
            return taken[-1:]
    return taken[WARM_UP:]
