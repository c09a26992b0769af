"""Confidence intervals over texts and seeds, and verdicts on differences.

Pure functions of arrays; independent of models, files and token meanings. Invariants: a metric is a
ratio of sums; its interval is a bootstrap over blocks of text; the result is deterministic; with
too little data there is no interval rather than a wide one.

Shapes: N (M) tokens, Q quantities per token, K blocks, S seeds, R resamples, C common token ends.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

BLOCK = 500  # minimum tokens per block
MIN_BLOCKS = 10  # with fewer there is no interval
MAX_BLOCKS = 20  # more are merged with their neighbours, so that long topics stay within a block
MAX_GROUPS = 1000  # of records, which are independent: more groups only cost time
MIN_SEEDS = 3  # paired runs; with fewer there is no interval
SINGLE = 0.95  # confidence level of a single interval
RESAMPLES = 10_000
SEED = 500  # of the resampling
_DRAWN = 1 << 20  # blocks drawn at once
RESOLUTION = 1e-5  # bits per byte; smaller differences may be rounding errors


class Estimate(NamedTuple):
    """A metric with its uncertainty; a difference is the metric of a minus that of b."""

    value: float  # nan if a sum is not finite or the denominator is zero
    interval: tuple[float, float] | None  # None if there are too few blocks or runs
    variance: float  # of the value over texts, from the block bootstrap; nan with too few blocks
    level: float  # confidence level of the interval; SINGLE for a single comparison
    blocks: int  # of the text, before merging to MAX_BLOCKS
    runs: int | None = None  # paired seeds; None: the interval covers the text only


class Blocks:
    """Sums over contiguous blocks of at least `least` tokens of a text that arrives in portions.

    Blocks do not cross document borders. The remainder of a document is added to its last block; a
    shorter document is one block. Results do not depend on how portions are split, bit for bit.
    """

    def __init__(self, quantities: int, *, least: int = BLOCK) -> None:
        self._least = least
        self._document: int | None = None
        self._started = False  # whether the document has a complete block
        self._sums = array("d")  # Q numbers per block
        self._waiting_NQ = np.empty((0, quantities))

    def add(self, document: int, values_NQ: np.ndarray) -> None:
        """Add the next tokens of the text; portions of a document are consecutive."""
        if document != self._document:
            self._close()
            self._document = document
        waiting_NQ = np.ascontiguousarray(np.concatenate([self._waiting_NQ, values_NQ]))
        while len(waiting_NQ) >= self._least:
            self._sums.extend(waiting_NQ[: self._least].sum(0).tolist())
            self._started, waiting_NQ = True, waiting_NQ[self._least :]
        self._waiting_NQ = waiting_NQ.copy()

    def sums(self) -> np.ndarray:
        """End the last document; return the sums of all blocks, float64 [K, Q]."""
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
    """Split a document scored by two models into common blocks: nats_a_K, nats_b_K and bytes_K.

    `ends`: non-decreasing byte offsets of token ends; tokens of zero bytes belong with the preceding
    ones. Blocks end at common token ends and have at least BLOCK tokens of each model; the remainder is
    added to the last block. For several documents, concatenate the results.
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
    numerator_K: np.ndarray,
    denominator_K: np.ndarray,
    *,
    comparisons: int = 1,
    most: int = MAX_BLOCKS,
) -> Estimate:
    """Σ numerator / Σ denominator, with a block-bootstrap interval; more than `most` blocks are merged.

    Neighbouring tokens are correlated (a hard passage is hard for many tokens), so that resampling
    single tokens would give intervals that are far too narrow. Blocks are longer than most of that
    correlation (Künsch, 1989), and ten to thirty long blocks suffice (Schmeiser, 1982). With few
    blocks, percentiles are expanded to match Student's t (Hesterberg, 2015); a percentile interval
    may be exponentiated to give the interval of the exponential. Each of several `comparisons` has
    the level 1 − 0.05/comparisons, so that all intervals hold jointly with probability 0.95
    (Bonferroni).
    """
    level = 1 - (1 - SINGLE) / comparisons
    # A block with denominator zero (a document of no bytes) is merged with the one before it.
    group_K = np.maximum(np.cumsum(denominator_K > 0) - 1, 0)
    numerator_K = np.bincount(group_K, numerator_K)
    denominator_K = np.bincount(group_K, denominator_K)
    blocks, total = len(numerator_K), float(denominator_K.sum())
    finite = total > 0 and bool(np.isfinite(numerator_K).all())
    value = float(numerator_K.sum()) / total if finite else math.nan
    if blocks < MIN_BLOCKS or not finite:
        return Estimate(value, None, math.nan, level, blocks)

    K = min(blocks, most)
    starts_K = np.arange(K) * blocks // K
    numerator_K, denominator_K = np.add.reduceat([numerator_K, denominator_K], starts_K, axis=1)
    random, size = np.random.default_rng(SEED), max(1, _DRAWN // K)
    ratios_R = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, size):
        drawn_RK = random.integers(K, size=(min(size, RESAMPLES - start), K))
        ratios_R[start : start + size] = numerator_K[drawn_RK].sum(1) / denominator_K[drawn_RK].sum(
            1
        )
    tail = NormalDist().cdf(-_student(K - 1, level) * math.sqrt(K / (K - 1)))
    low, high = np.quantile(ratios_R, [tail, 1 - tail])
    variance = float(ratios_R.var()) * K / (K - 1)  # corrects the bias of the bootstrap variance
    return Estimate(value, (float(low), float(high)), variance, level, blocks)


def scattered(keys_R: np.ndarray) -> np.ndarray:
    """A random order of records, given their keys; indices [R].

    It does not depend on their order in the list, except for records that are equal.
    """
    order_R = np.argsort(keys_R, kind="stable")
    sorted_R = keys_R[order_R].astype(np.uint64)
    first_R = np.flatnonzero(np.append(True, sorted_R[1:] != sorted_R[:-1]))
    times = np.diff(first_R, append=len(sorted_R))
    repeats_R = np.arange(len(sorted_R)) - np.repeat(first_R, times)  # among equal records
    # A hash of each key with its number among equal ones: SplitMix64 (Steele, Lea and Flood, 2014).
    places_R = sorted_R + repeats_R.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        places_R = (places_R ^ (places_R >> np.uint64(shift))) * np.uint64(factor)
    return order_R[np.argsort(places_R, kind="stable")]


def records_interval(
    numerator_R: np.ndarray, denominator_R: np.ndarray, keys_R: np.ndarray
) -> Estimate:
    """Σ numerator / Σ denominator over records, with a bootstrap interval over records.

    Records are taken as independent draws. Many are resampled in random groups of equal numbers, which
    has the same distribution in the limit. Independent of their order.
    """
    order_R = scattered(keys_R)
    return ratio_interval(numerator_R[order_R], denominator_R[order_R], most=MAX_GROUPS)


def paired_difference(
    nats_a_K: np.ndarray, nats_b_K: np.ndarray, bytes_K: np.ndarray, *, most: int = MAX_BLOCKS
) -> Estimate:
    """Bits per byte of a minus those of b, over the same blocks of one text, merged to `most`.

    The interval covers the text only, for these two trained models: two seeds of one model may differ
    by more.
    """
    return ratio_interval(_bits(nats_a_K, nats_b_K), bytes_K, most=most)


def seeds_difference(
    nats_a_SK: np.ndarray,
    nats_b_SK: np.ndarray,
    bytes_K: np.ndarray,
    *,
    comparisons: int = 1,
    most: int = MAX_BLOCKS,
) -> Estimate:
    """Bits per byte of a minus those of b, over seeds and text; rows are paired by seed.

    `most`: as in ratio_interval.
    """
    bits_SK = _bits(nats_a_SK, nats_b_SK)
    text = ratio_interval(bits_SK.mean(0), bytes_K, comparisons=comparisons, most=most)
    if text.interval is None:
        return text._replace(runs=len(bits_SK))
    differences_S = bits_SK.sum(1) / bytes_K.sum()
    interval = t_interval(differences_S, variance=text.variance, level=text.level)
    return text._replace(interval=interval, runs=len(bits_SK))


def t_interval(
    differences_S: np.ndarray, *, variance: float, level: float = SINGLE
) -> tuple[float, float] | None:
    """Mean of the paired differences ± t(S−1)·√(s²/S + variance); None with fewer than MIN_SEEDS.

    `variance` is that of the mean difference over texts. Student's t is used because a bootstrap over a
    few seeds has far too many false positives.
    """
    S = len(differences_S)
    if S < MIN_SEEDS:
        return None
    mean, spread = float(np.mean(differences_S)), float(np.var(differences_S, ddof=1))
    half = _student(S - 1, level) * math.sqrt(spread / S + variance)
    return mean - half, mean + half


def direction(difference: Estimate) -> int:
    """1 if b is better (fewer bits per byte), −1 if a is better, 0 if no difference was found."""
    low, high = difference.interval or (0.0, 0.0)
    return int(low > RESOLUTION) - int(high < -RESOLUTION)


def verdict(a: str, b: str, difference: Estimate, *, at: str = "", of_records: bool = False) -> str:
    """One sentence on the difference of a and b in bits per byte; `at` as in "at equal parameters".

    `of_records`: on a list, whose blocks are groups of records.
    """
    this, drawn = ("list", "records") if of_records else ("text", "text")
    if math.isnan(difference.value):
        return f"no verdict: the {this} is empty, or a model assigns zero probability to part of it"
    if difference.runs is not None and difference.runs < MIN_SEEDS:
        return f"not enough runs to tell: {difference.runs} of each, {MIN_SEEDS} are needed"
    if difference.interval is None:
        blocks = "records" if of_records else f"blocks of {BLOCK} tokens"
        few = f"{difference.blocks} {blocks}, {MIN_BLOCKS} are needed"
        return f"not enough {drawn} to tell: {few}"
    low, high = difference.interval
    decimals = decimals_of(max((high - low) / 2, RESOLUTION))
    terms = f" {at}" if at else ""
    sure = f"{100 * difference.level:.4g} % interval"
    alone = f", over the {drawn} alone: other seeds may differ" if difference.runs is None else ""
    if not (sign := direction(difference)):
        largest = _outward(max(-low, high, RESOLUTION), decimals, math.ceil)
        return (
            f"no difference found between {a} and {b}{terms} on this {this}; "
            f"a difference larger than {largest} bits per byte is excluded ({sure}{alone})"
        )
    better, worse = (b, a) if sign > 0 else (a, b)
    span = spanned(*sorted((sign * low, sign * high)))
    return (
        f"{better} predicts this {this} better than {worse}{terms}: "
        f"{_fixed(sign * difference.value, decimals)} bits per byte fewer ({sure} {span}{alone})"
    )


def rounded(value: float, half_width: float) -> tuple[str, str]:
    """Round both to two significant digits of the half width: (0.02135, 0.00912) → 0.0213, 0.0091."""
    decimals = decimals_of(half_width)
    return _fixed(value, decimals), _fixed(half_width, decimals)


def spanned(low: float, high: float) -> str:
    """An interval with such digits, rounded outward: (-0.00412, 0.01337) → -0.0042 to 0.0134."""
    decimals = decimals_of(max((high - low) / 2, RESOLUTION))
    ends = _outward(low, decimals, math.floor), _outward(high, decimals, math.ceil)
    return " to ".join(ends)


def decimals_of(half_width: float) -> int:
    """Decimals of two significant digits: 2 for 0.0996 (0.10); negative for 123 (120)."""
    return 1 - int(f"{half_width:.1e}".partition("e")[2])


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}"  # + 0.0: never "-0"


def _outward(value: float, decimals: int, rounding: Callable[[float], int]) -> str:
    """An end of an interval, rounded away from it except for floating-point noise."""
    return _fixed(rounding(round(value * 10.0**decimals, 6)) / 10.0**decimals, decimals)


def _student(freedom: int, level: float) -> float:
    """Two-sided critical value of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _bits(nats_a: np.ndarray, nats_b: np.ndarray) -> np.ndarray:
    """The difference in bits; nan if either is not finite."""
    with np.errstate(invalid="ignore"):
        bits = (nats_a - nats_b) / math.log(2)
    return np.where(np.isfinite(bits), bits, math.nan)
