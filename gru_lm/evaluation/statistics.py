"""How sure a figure is: intervals over a text and over seeds, and what may be said of them.

Pure functions over arrays. Knows no model, no files and no tokens' meaning. What always holds: a
figure is a ratio of sums, its interval comes of whole blocks of text, the same sums give the same
interval, and where there is too little to tell there is no interval instead of a wide guess.

Shapes: N (M) tokens, Q quantities of a token, K blocks, S seeds, R resamples.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

BLOCK = 500  # tokens of a block, at least
MIN_BLOCKS = 10  # under this there is no interval
MAX_BLOCKS = 20  # more are joined with their neighbours: long topics then stay within a block
MIN_SEEDS = 3  # paired runs; under this there is no interval
SINGLE = 0.95  # level of an interval; of several together each has a higher one
RESAMPLES = 10_000
SEED = 500  # of the resampling
RESOLUTION = 1e-5  # bits per byte: less may be rounding in the models' arithmetic


class Estimate(NamedTuple):
    """A figure with its uncertainty; a difference is a's figure less b's."""

    value: float  # nan where a sum is not finite, or where there is nothing to divide by
    interval: tuple[float, float] | None  # None where blocks or runs are too few
    variance: float  # of the value, over texts: the block bootstrap's; nan without enough blocks
    level: float  # of the interval, SINGLE for a single comparison
    blocks: int  # of the text, before they were joined to MAX_BLOCKS
    runs: int | None = None  # paired seeds; None: the interval is over the text alone


class Blocks:
    """Sums over contiguous blocks of at least `least` tokens, of a text that comes in portions.

    No block crosses from one document to the next. What is left at a document's end joins its last
    block; a shorter document is one block. Where portions are cut does not matter, to the last bit.
    """

    def __init__(self, quantities: int, *, least: int = BLOCK) -> None:
        self._least = least
        self._document: int | None = None
        self._started = False  # the document has a block already
        self._sums = array("d")  # Q numbers a block: all that is kept of it
        self._waiting_NQ = np.empty((0, quantities))

    def add(self, document: int, values_NQ: np.ndarray) -> None:
        """The next tokens of the text; a document's portions follow one another."""
        if document != self._document:
            self._close()
            self._document = document
        waiting_NQ = np.ascontiguousarray(np.concatenate([self._waiting_NQ, values_NQ]))
        while len(waiting_NQ) >= self._least:
            self._sums.extend(waiting_NQ[: self._least].sum(0).tolist())
            self._started, waiting_NQ = True, waiting_NQ[self._least :]
        self._waiting_NQ = waiting_NQ.copy()

    def sums(self) -> np.ndarray:
        """The sums of every block, float64 [K, Q]. This ends the last document."""
        self._close()
        return np.array(self._sums).reshape(-1, self._waiting_NQ.shape[1])

    def _close(self) -> None:
        rest, Q = len(self._waiting_NQ), self._waiting_NQ.shape[1]
        if rest and self._started:
            self._waiting_NQ[0] += self._sums[-Q:]
            del self._sums[-Q:]
        if rest:
            self._sums.extend(self._waiting_NQ.sum(0).tolist())
        self._waiting_NQ = self._waiting_NQ[:0]
        self._document, self._started = None, False


def common_blocks(
    ends_a_N: np.ndarray, nats_a_N: np.ndarray, ends_b_M: np.ndarray, nats_b_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One document, read by two models: nats_a_K, nats_b_K and bytes_K of the same stretches.

    `ends` are the byte offsets in the document at which tokens end, never falling; tokens of no
    bytes go with what is before them. A block ends where both have a border, BLOCK tokens of each
    at least; the rest joins the last. Of several documents, concatenate what comes of each.
    """
    borders_C = np.intersect1d(ends_a_N, ends_b_M)
    upto_a_C = np.searchsorted(ends_a_N, borders_C, side="right")
    upto_b_C = np.searchsorted(ends_b_M, borders_C, side="right")
    cuts = [(0, 0, 0)]  # bytes, tokens of a, tokens of b
    while True:
        _, a, b = cuts[-1]
        at = max(np.searchsorted(upto_a_C, a + BLOCK), np.searchsorted(upto_b_C, b + BLOCK))
        if at == len(borders_C):
            break
        cuts.append((int(borders_C[at]), int(upto_a_C[at]), int(upto_b_C[at])))
    length = int(max(ends_a_N.max(initial=0), ends_b_M.max(initial=0)))
    cuts[max(1, len(cuts) - 1) :] = [(length, len(ends_a_N), len(ends_b_M))]
    cuts_K3 = np.array(cuts)
    return (
        np.array([part.sum() for part in np.split(nats_a_N, cuts_K3[1:-1, 1])]),
        np.array([part.sum() for part in np.split(nats_b_M, cuts_K3[1:-1, 2])]),
        np.diff(cuts_K3[:, 0]),
    )


def ratio_interval(
    numerator_K: np.ndarray, denominator_K: np.ndarray, *, comparisons: int = 1
) -> Estimate:
    """Σ numerator / Σ denominator, with a block bootstrap's interval.

    Neighbouring tokens are not independent (a hard passage is hard for many tokens): resampling
    them one by one would give an interval far too narrow. Blocks outlast most of that memory
    (Künsch, 1989), and ten to thirty long ones are enough (Schmeiser, 1982). Percentiles are taken as
    far out as Student's t asks where blocks are few (Hesterberg, 2015: expanded percentiles), and
    so the exponentials of the ends are the interval of the exponential. Each of `comparisons` made
    together has the level 1 − 0.05/comparisons, so that all hold with 0.95 (Bonferroni).
    """
    level = 1 - (1 - SINGLE) / comparisons
    # Where there is nothing to divide by (a document of no bytes), a block joins the one before it.
    group_K = np.maximum(np.cumsum(denominator_K > 0) - 1, 0)
    numerator_K = np.bincount(group_K, numerator_K)
    denominator_K = np.bincount(group_K, denominator_K)
    blocks, total = len(numerator_K), float(denominator_K.sum())
    finite = total > 0 and bool(np.isfinite(numerator_K).all())
    value = float(numerator_K.sum()) / total if finite else math.nan
    if blocks < MIN_BLOCKS or not finite:
        return Estimate(value, None, math.nan, level, blocks)

    K = min(blocks, MAX_BLOCKS)
    starts_K = np.arange(K) * blocks // K
    numerator_K, denominator_K = np.add.reduceat([numerator_K, denominator_K], starts_K, axis=1)
    drawn_RK = np.random.default_rng(SEED).integers(K, size=(RESAMPLES, K))
    ratios_R = numerator_K[drawn_RK].sum(1) / denominator_K[drawn_RK].sum(1)
    tail = NormalDist().cdf(-_student(K - 1, level) * math.sqrt(K / (K - 1)))
    low, high = np.quantile(ratios_R, [tail, 1 - tail])
    variance = float(ratios_R.var()) * K / (K - 1)  # the bootstrap's own is too small by that
    return Estimate(value, (float(low), float(high)), variance, level, blocks)


def paired_difference(nats_a_K: np.ndarray, nats_b_K: np.ndarray, bytes_K: np.ndarray) -> Estimate:
    """Bits per byte of a less those of b, both over the same stretches of one text.

    Over the text alone, so of these two models: two seeds of one model may well differ by more.
    """
    return ratio_interval(_bits(nats_a_K, nats_b_K), bytes_K)


def seeds_difference(
    nats_a_SK: np.ndarray, nats_b_SK: np.ndarray, bytes_K: np.ndarray, *, comparisons: int = 1
) -> Estimate:
    """Bits per byte of a less those of b, over seeds and text; row by row the seeds are paired."""
    bits_SK = _bits(nats_a_SK, nats_b_SK)
    text = ratio_interval(bits_SK.mean(0), bytes_K, comparisons=comparisons)
    if text.interval is None:
        return text._replace(runs=len(bits_SK))
    differences_S = bits_SK.sum(1) / bytes_K.sum()
    interval = t_interval(differences_S, variance=text.variance, level=text.level)
    return text._replace(interval=interval, runs=len(bits_SK))


def t_interval(
    differences_S: np.ndarray, *, variance: float, level: float = SINGLE
) -> tuple[float, float] | None:
    """Mean of the paired differences ± t(S−1)·√(s²/S + variance); None under MIN_SEEDS.

    `variance` is that of the mean difference over texts. Student's t because resampling a few
    seeds would claim differences that are not there far too often.
    """
    S = len(differences_S)
    if S < MIN_SEEDS:
        return None
    mean, spread = float(np.mean(differences_S)), float(np.var(differences_S, ddof=1))
    half = _student(S - 1, level) * math.sqrt(spread / S + variance)
    return mean - half, mean + half


def direction(difference: Estimate) -> int:
    """1: b is found to be better (fewer bits per byte); −1: a is; 0: neither is."""
    low, high = difference.interval or (0.0, 0.0)
    return int(low > RESOLUTION) - int(high < -RESOLUTION)


def verdict(a: str, b: str, difference: Estimate, *, at: str = "") -> str:
    """One sentence on a's bits per byte less b's; `at` as in "at equal parameters"."""
    if math.isnan(difference.value):
        return "no verdict: the text is empty, or a model gives a part of it no probability"
    if difference.runs is not None and difference.runs < MIN_SEEDS:
        return f"not enough runs to tell: {difference.runs} of each, {MIN_SEEDS} are needed"
    if difference.interval is None:
        few = f"{difference.blocks} blocks of {BLOCK} tokens, {MIN_BLOCKS} are needed"
        return f"not enough text to tell: {few}"
    low, high = difference.interval
    decimals = decimals_of(max((high - low) / 2, RESOLUTION))
    terms = f" {at}" if at else ""
    sure = f"{100 * difference.level:.4g} % interval"
    alone = ", over the text alone: other seeds may differ" if difference.runs is None else ""
    if not (sign := direction(difference)):
        largest = _outward(max(-low, high, RESOLUTION), decimals, math.ceil)
        return (
            f"no difference found between {a} and {b}{terms} on this text; "
            f"a difference larger than {largest} bits per byte is excluded ({sure}{alone})"
        )
    better, worse = (b, a) if sign > 0 else (a, b)
    span = spanned(*sorted((sign * low, sign * high)))
    return (
        f"{better} predicts this text better than {worse}{terms}: "
        f"{_fixed(sign * difference.value, decimals)} bits per byte fewer ({sure} {span}{alone})"
    )


def rounded(value: float, half_width: float) -> tuple[str, str]:
    """Both to two significant digits of the half width: (0.02135, 0.00912) → 0.0213, 0.0091."""
    decimals = decimals_of(half_width)
    return _fixed(value, decimals), _fixed(half_width, decimals)


def spanned(low: float, high: float) -> str:
    """An interval to as many digits, rounded outward: (-0.00412, 0.01337) → -0.0042 to 0.0134."""
    decimals = decimals_of(max((high - low) / 2, RESOLUTION))
    ends = _outward(low, decimals, math.floor), _outward(high, decimals, math.ceil)
    return " to ".join(ends)


def decimals_of(half_width: float) -> int:
    """Decimals that two significant digits take; 0.0996 is 0.10. Below zero for 123, which is 120."""
    return 1 - int(f"{half_width:.1e}".partition("e")[2])


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}"  # + 0.0: never "-0"


def _outward(value: float, decimals: int, rounding: Callable[[float], int]) -> str:
    """An end of an interval never rounded into it, but for what floating point itself adds."""
    return _fixed(rounding(round(value * 10.0**decimals, 6)) / 10.0**decimals, decimals)


def _student(freedom: int, level: float) -> float:
    """How far out Student's t is exceeded on either side, together, with probability 1 − level."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _bits(nats_a: np.ndarray, nats_b: np.ndarray) -> np.ndarray:
    """Their difference in bits; nan where either is not finite."""
    with np.errstate(invalid="ignore"):
        bits = (nats_a - nats_b) / math.log(2)
    return np.where(np.isfinite(bits), bits, math.nan)
