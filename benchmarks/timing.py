"""Times works against each other: interleaved and repeated in one process, medians with spreads.

Absolute times mean little on a shared machine; ratios are taken between neighbours in time. Every work
runs often enough in a round that the clock and the caches do not matter.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

ROUNDS = 9
SECONDS = 0.05  # at least, of one work in one round

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times faster one work is than another: median of the rounds, and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Timings:
    """Seconds of each work in every round."""

    def __init__(self, works: dict[str, Work], *, rounds: int = ROUNDS) -> None:
        repeats = {}
        for name, work in works.items():
            work()  # warms up, and compiles what is to be compiled
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
        """The median time of one call."""
        return statistics.median(self._seconds[name])

    def ratio(self, name: str, base: str, *, per_call: float = 1.0) -> Ratio:
        """Speed of `name` over that of `base`, where a call of `name` does `per_call` times as much."""
        pairs = zip(self._seconds[base], self._seconds[name], strict=True)
        ratios = [per_call * slow / fast for slow, fast in pairs]
        low, _, high = statistics.quantiles(ratios, n=4)
        return Ratio(statistics.median(ratios), low, high)


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)
