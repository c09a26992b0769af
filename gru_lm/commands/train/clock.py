"""The time of a training command: what is used up, and what its end will still need.

All costs are measured, by who causes them. Knows no model and no file.
What always holds: a budget that ends when `clock` says so ends, with all that follows, on time.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from gru_lm.errors import BudgetError

# What follows the last measurement: the plot, the result, the process's end.
EXIT_SECONDS = 0.6
RECENT = 50  # steps whose median says how long one takes: the first are slow, and some are held up


# What the time before the first step goes to, and how to need less of it.
START, READING, LEARNING, TOKENIZING, TRYING, VALIDATION, TEST, SAVING, EARLIER = (
    "starting",
    "reading the text",
    "training the tokenizer",
    "tokenizing the text",
    "measuring the speed of training",
    "a validation",
    "the test text",
    "saving and plotting",
    "earlier commands",
)
REMEDIES = {
    READING: "less text, also in --valid and --test",
    LEARNING: "--tokenizer char or a smaller --characters",
    TOKENIZING: "a smaller --characters or --valid-characters",
    TRYING: "a smaller --batch, --bptt or --width",
    VALIDATION: "a smaller --valid-characters or --width",
    TEST: "a smaller test text",
    SAVING: "a smaller --width or --vocab-size",
}


@dataclass
class Spent:
    """Where the time of a command went that started at `started` on the monotonic clock."""

    started: float
    seconds: dict[str, float] = field(default_factory=dict)  # by the names above

    def on(self, what: str) -> None:
        """Account all the time since the last call, at first since the start, to `what`."""
        unaccounted = time.monotonic() - self.started - sum(self.seconds.values())
        self.seconds[what] = self.seconds.get(what, 0.0) + unaccounted


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

    def no_step(self, spent: Spent, minutes: float, run: Path, step: int) -> BudgetError:
        """The error for a budget of so many minutes that no step fitted into, after `step` steps."""
        goes_on = step or self.before  # else nothing stays of the run
        again = f"gru-lm train --resume {run} --minutes" if goes_on else "--minutes"
        needed = {EARLIER: self.before, **spent.seconds}
        for what, seconds in (
            (VALIDATION, self.validation_seconds),
            (TEST, self.test_seconds()),
            (SAVING, self.save_seconds + EXIT_SECONDS),
        ):
            needed[what] = needed.get(what, 0.0) + seconds
        what = max(needed, key=needed.__getitem__)
        enough = max(2 * minutes, 3 * sum(needed.values()) / 60)
        remedy = "" if goes_on or what not in REMEDIES else f", or {REMEDIES[what]}"
        return BudgetError(
            f"no training step fitted into --minutes {minutes:g}",
            why=f"{what} takes {needed[what]:.1f} of its {60 * minutes:.0f} s",
            hint=f"{again} {enough:.2g}{remedy}",
        )
