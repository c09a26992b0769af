"""Time accounting of a training command: time used, and time reserved for the final steps.

All costs are measured by the caller. Knows no models or files. Invariant: if training ends when `clock`
reaches the budget, then final validation, test and checkpoint are done within the budget too.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from gru_lm.errors import BudgetError

# After the last measurement: the plot, the result and process exit.
EXIT_SECONDS = 0.6
RECENT = 50  # steps in the running median, which ignores the slow first ones and stragglers


# Phases of a command, and how to shorten them.
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
    """Seconds spent in each phase of a command that started at `started` (monotonic clock)."""

    started: float
    seconds: dict[str, float] = field(default_factory=dict)  # by phase

    def on(self, phase: str) -> None:
        """Charge the time since the last call, or since the start, to `phase`."""
        unaccounted = time.monotonic() - self.started - sum(self.seconds.values())
        self.seconds[phase] = self.seconds.get(phase, 0.0) + unaccounted


@dataclass(kw_only=True)
class Pace:
    """Speed and clock of a command that started at `started` (monotonic clock).

    `before`: seconds of the same budget used by earlier commands. `held_out`, `test`, `step_tokens`:
    tokens per validation, in the test at the end, and per training step.
    """

    started: float
    before: float
    held_out: int
    test: int
    step_tokens: int

    validation_seconds: float = 0.0  # of the latest one, as an estimate of the next
    measure_seconds: float = 0.0  # the same without sampling
    save_seconds: float = 0.0
    tokens: int = 0  # of all steps in this process
    step_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def step(self, seconds: float) -> None:
        """Record a step."""
        self.tokens += self.step_tokens
        self.step_seconds += seconds
        self.recent.append(seconds)

    def tokens_per_second(self) -> float:
        """Training speed, excluding validations and checkpoints."""
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    def test_seconds(self) -> float:
        """Estimated time of the test at the end, from that of a validation."""
        return self.measure_seconds * self.test / self.held_out

    def elapsed(self) -> float:
        """Seconds of the budget used so far."""
        return self.before + time.monotonic() - self.started

    def clock(self) -> float:
        """Seconds used plus those reserved for the end, and half a step, as the last one overruns."""
        end = self.validation_seconds + self.test_seconds() + self.save_seconds + EXIT_SECONDS
        step = statistics.median(self.recent) if self.recent else 0.0
        return self.elapsed() + end + step / 2

    def no_step(self, spent: Spent, minutes: float, run: Path, step: int) -> BudgetError:
        """The error if the budget leaves no time for a step, after `step` steps of earlier commands."""
        can_resume = step or self.before  # otherwise the run is removed
        again = f"gru-lm train --resume {run} --minutes" if can_resume else "--minutes"
        needed = {EARLIER: self.before, **spent.seconds}
        for phase, seconds in (
            (VALIDATION, self.validation_seconds),
            (TEST, self.test_seconds()),
            (SAVING, self.save_seconds + EXIT_SECONDS),
        ):
            needed[phase] = needed.get(phase, 0.0) + seconds
        slowest = max(needed, key=needed.__getitem__)
        enough = max(2 * minutes, 3 * sum(needed.values()) / 60)
        remedy = "" if can_resume or slowest not in REMEDIES else f", or {REMEDIES[slowest]}"
        return BudgetError(
            f"no training step fits into --minutes {minutes:g}",
            why=f"{slowest} takes {needed[slowest]:.1f} of its {60 * minutes:.0f} s",
            hint=f"{again} {enough:.2g}{remedy}",
        )
