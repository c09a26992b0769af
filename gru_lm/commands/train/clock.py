"""The time of a training command: what is used up, and what its end will still need.

All costs are measured, by who causes them. Knows no model and no file.
What always holds: a budget that ends when `clock` says so ends, with all that follows, on time.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

# What follows the last measurement: the plot, the result, the process's end.
EXIT_SECONDS = 0.6
RECENT = 50  # steps whose median says how long one takes: the first are slow, and some are held up


@dataclass(kw_only=True)
class Pace:
    """The pace of a command that started at `started` on the monotonic clock.

    `before` are seconds that earlier commands used of the same budget; `held_out` and `test` the tokens
    of a validation and of what is measured once at the end, `step_tokens` those of a step.
    """

    started: float
    before: float
    held_out: int
    test: int
    step_tokens: int

    validation_seconds: float = 0.0  # of the newest one, as the next
    measure_seconds: float = 0.0  # of it, without the sample that is drawn too
    save_seconds: float = 0.0
    tokens: int = 0  # of all steps made
    step_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def step(self, seconds: float) -> None:
        """Account for a step."""
        self.tokens += self.step_tokens
        self.step_seconds += seconds
        self.recent.append(seconds)

    def tokens_per_second(self) -> float:
        """Of the steps alone."""
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    def test_seconds(self) -> float:
        """What the measurement at the end takes, as a validation's does."""
        return self.measure_seconds * self.test / self.held_out

    def elapsed(self) -> float:
        """Seconds of the budget that are used up."""
        return self.before + time.monotonic() - self.started

    def clock(self) -> float:
        """The same, and those that the end will need; half a step too, for one overlaps the end."""
        end = self.validation_seconds + self.test_seconds() + self.save_seconds + EXIT_SECONDS
        step = statistics.median(self.recent) if self.recent else 0.0
        return self.elapsed() + end + step / 2
