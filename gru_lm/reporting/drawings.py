"""SVG charts on a horizontal axis, for HTML pages: numbers in, a str out.

Knows nothing about results. Text is not escaped, so it must already be safe HTML. Colours come from the
page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEFT, RIGHT, TOP = 70, 590, 10  # edges of the plot area in an image of width 620


class Scale(NamedTuple):
    """Linear scale from values, low to high, to SVG coordinates, begin to end."""

    low: float
    high: float
    begin: int
    end: int

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.begin + share * (self.end - self.begin):.1f}"

    def ticks(self) -> list[tuple[float, str]]:
        """At most seven round values, with their labels."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 6))
        step = next(n * power for n in (1, 2, 5, 10, 20) if self.high - self.low <= 6 * n * power)
        decimals = max(0, -math.floor(math.log10(step)))
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(number * step, f"{number * step:,.{decimals}f}") for number in numbers]


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a scale with a margin around these values."""
    margin = 0.08 * (max(values) - min(values)) or 0.01 * abs(values[0]) or 0.01
    return min(values) - margin, max(values) + margin


def svg(drawn: str, x: Scale, bottom: int, below: str, label: str) -> str:
    """The HTML of a chart: content `drawn`, x axis at `bottom` titled `below`, caption `label`."""
    axis = "".join(
        f'<path class="grid" d="M{x(value)} {TOP}V{bottom}"/>'
        f'<text x="{x(value)}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
        for value, text in x.ticks()
    )
    axis += f'<text x="{RIGHT}" y="{bottom + 34}" text-anchor="end">{below}</text>'
    return (
        f'<p>{label}.</p><div class="wide"><svg viewBox="0 0 620 {bottom + 40}" role="img" '
        f'aria-label="{label}">{axis}{drawn}</svg></div>'
    )
