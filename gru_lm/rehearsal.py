"""How fast a plan trains on this machine: some real steps, of which nothing is kept.

Knows what is prepared, and neither run nor budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gru_lm.signals import Stop
from gru_lm.text.batches import Batches
from gru_lm.training.loop import train_steps
from gru_lm.training.optimizers import Budget, Schedule

if TYPE_CHECKING:
    from gru_lm.prepare import Prepared

SECONDS = 0.6  # of steps that are timed
WARM_UP = 3  # steps before: they compile, and take memory
FEWEST = 3
LONG = 5.0  # seconds of steps after which the last one alone says enough


def tokens_per_second(prepared: Prepared, *, stop: Stop) -> float:
    """Training tokens a second of a fresh model. Raises what `stop` raises."""
    plan, settings = prepared.plan, prepared.settings
    steps = train_steps(
        prepared.state(),
        Batches(
            tokens=prepared.data.train.tokens,
            batch=plan.batch,
            bptt=plan.bptt,
            seed=settings.seed,
        ),
        budget=Budget(steps=None, seconds=None),
        schedule=Schedule(kind="constant", lr=plan.lr, warmup=1.0),
        clip=settings.clip,
        seed=settings.seed,
        precision=plan.precision,
        clock=lambda: 0.0,
    )
    taken: list[float] = []
    while sum(taken[WARM_UP:]) < SECONDS or len(taken) < WARM_UP + FEWEST:
        stop()
        taken.append(next(steps).seconds)
        if len(taken) > 1 and sum(taken) > LONG:
            return plan.batch * plan.bptt / taken[-1]
    taken = taken[WARM_UP:]
    # What else the machine does only ever slows a step down, and will not go on for ever.
    return plan.batch * plan.bptt / sorted(taken)[len(taken) // 4]
