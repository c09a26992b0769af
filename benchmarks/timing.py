"""Relative timing of workloads, interleaved in one process: medians of ratios with their spread.

Absolute times mean little on a shared machine, so ratios are taken within each round. A workload is
repeated within a round until timer resolution and caches no longer matter.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

ROUNDS = 9
SECONDS = 0.05  # minimum for one workload in one round

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Speed of one workload relative to another: median over rounds, and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Timings:
    """Seconds of each workload in every round."""

    def __init__(self, works: dict[str, Work], *, rounds: int = ROUNDS) -> None:
        repeats = {}
        for name, work in works.items():
            work()  # warm-up, including compilation
            started = time.perf_counter()
            work()
            repeats[name] = max(1, math.ceil(SECONDS / (time.perf_counter() - started)))
        self._seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                started = time.perf_counter()
                for _ in range(repeats[name]):
                    work()
                elapsed = time.perf_counter() - started
                self._seconds[name].append(elapsed / repeats[name])

    def seconds(self, name: str) -> float:
        """Median time of one call."""
        return statistics.median(self._seconds[name])

    def ratio(self, name: str, base: str, *, per_call: float = 1.0) -> Ratio:
        """Speed of `name` relative to `base`, if a call of `name` does `per_call` times the work."""
        pairs = zip(self._seconds[base], self._seconds[name], strict=True)
        ratios = [per_call * slow / fast for slow, fast in pairs]
        low, _, high = statistics.quantiles(ratios, n=4)
        return Ratio(statistics.median(ratios), low, high)


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)
