"""Intervals have their nominal coverage; verdicts never claim more than the intervals support."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.evaluation import statistics
from gru_lm.evaluation.paired import cells_differences
from gru_lm.evaluation.statistics import (
    BLOCK,
    MAX_BLOCKS,
    Blocks,
    Estimate,
    common_blocks,
    direction,
    paired_difference,
    ratio_interval,
    records_interval,
    rounded,
    seeds_difference,
    t_interval,
    verdict,
)

TRUTH = 0.5  # nats per byte of every simulated text


def texts(
    rng: np.random.Generator, count: int, blocks: int, *, stay: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes by block [texts, K] of texts that alternate between a hard and an easy topic.

    A topic lasts `stay` tokens on average, so tokens are far from independent: their correlation at a
    distance of d tokens is proportional to exp(−2d/stay).
    """
    N = blocks * BLOCK
    hard = rng.random((count, N), np.float32) < 1 / stay
    hard[:, 0] = rng.random(count) < 0.5
    mean = 1.2 + 1.6 * (np.cumsum(hard, axis=1, dtype=np.int32) % 2).astype(np.float32)
    nats = mean * rng.standard_exponential((count, N), np.float32)  # mean 2
    spelt = 1 + 3 * nats * rng.random((count, N), np.float32)  # mean 4; rare tokens are long
    return sums(nats, blocks), sums(spelt, blocks)


def sums(values: np.ndarray, blocks: int) -> np.ndarray:
    return values.reshape(len(values), blocks, -1).sum(2, dtype=np.float64)


def share_held(nats: np.ndarray, bytes_: np.ndarray, truth: float) -> float:
    """Number of texts whose interval contains the true value."""
    held = 0
    for nats_K, bytes_K in zip(nats, bytes_, strict=True):
        interval = ratio_interval(nats_K, bytes_K).interval
        assert interval
        held += interval[0] <= truth <= interval[1]
    return held / len(nats)


# --- blocks ---


@given(
    st.lists(st.integers(0, 17), min_size=1, max_size=5),
    st.lists(st.integers(0, 60), max_size=6),
    st.integers(1, 3),
)
def test_blocks_are_the_same_wherever_portions_are_cut(
    lengths: list[int], cuts: list[int], quantities: int
) -> None:
    rng = np.random.default_rng(0)
    whole, pieces = Blocks(quantities, least=5), Blocks(quantities, least=5)
    expected = []
    for number, length in enumerate(lengths):
        values_NQ = rng.standard_normal((length, quantities))
        whole.add(number, values_NQ)
        for start, end in pairwise(sorted({0, length, *(c for c in cuts if c < length)})):
            pieces.add(number, np.asfortranarray(values_NQ[start:end]))
        starts = list(range(0, max(length - 4, min(length, 1)), 5))
        expected += [values_NQ[s:e].sum(0) for s, e in pairwise([*starts, length])]
    found_KQ = whole.sums()
    assert found_KQ.shape == (len(expected), quantities)
    assert np.array_equal(found_KQ, pieces.sums())
    assert np.allclose(found_KQ, np.reshape(expected, found_KQ.shape))


def tokenized(rng: np.random.Generator, length: int, longest: int) -> np.ndarray:
    """Ends of tokens of 0 to `longest` bytes, with `length` bytes in total."""
    ends = np.cumsum(rng.integers(0, longest + 1, size=2 * length))
    return np.append(ends[ends < length], length)


def test_common_blocks_are_the_same_stretches_of_text() -> None:
    rng = np.random.default_rng(1)
    ends_a_N, ends_b_M = tokenized(rng, 30_000, 6), tokenized(rng, 30_000, 9)
    # The cost of a token encodes its position, so the nats of a block identify its tokens.
    marks_a_N, marks_b_M = 1.0 + np.arange(len(ends_a_N)), 1.0 + np.arange(len(ends_b_M))
    found = common_blocks(ends_a_N, marks_a_N, ends_b_M, marks_b_M)
    cuts = np.cumsum(found[2])
    assert len(cuts) > 5
    assert cuts[-1] == 30_000
    for ends, marks, found_K in ((ends_a_N, marks_a_N, found[0]), (ends_b_M, marks_b_M, found[1])):
        assert np.isin(cuts, ends).all()
        upto = np.searchsorted(ends, cuts, side="right")
        assert np.array_equal(np.cumsum(found_K), np.cumsum(marks)[upto - 1])
        assert np.diff(upto, prepend=0).min() >= BLOCK
    # The first cut is as early as possible: at the first common border after 500 of each.
    least = max(ends_a_N[BLOCK - 1], ends_b_M[BLOCK - 1])
    both = np.intersect1d(ends_a_N, ends_b_M)
    assert cuts[0] == both[both >= least][0]


@pytest.mark.parametrize("length", [0, 7, 499, 999])
def test_a_short_document_is_one_block(length: int) -> None:
    ends_N = np.arange(1, length + 1)
    half_M = np.unique(np.append(ends_N[1::2], ends_N[-1:]))
    nats_a_K, nats_b_K, bytes_K = common_blocks(
        ends_N, np.ones(length), half_M, np.ones(len(half_M))
    )
    assert (nats_a_K.tolist(), nats_b_K.tolist(), bytes_K.tolist()) == (
        [length],
        [len(half_M)],
        [length],
    )


# --- intervals over a text ---


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    nats, bytes_ = texts(np.random.default_rng(2), 200, 40)
    assert 0.90 <= share_held(nats, bytes_, TRUTH) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [10, 20, 50, 120])
def test_the_interval_holds_the_truth_whatever_the_length(blocks: int) -> None:
    """Autoregressive, heavy-tailed surprisal, with all resamples."""
    rng = np.random.default_rng(3)
    nats = rng.standard_normal((400, blocks * BLOCK), np.float32)
    for at in range(1, nats.shape[1]):
        nats[:, at] = 0.9 * nats[:, at - 1] + math.sqrt(0.19) * nats[:, at]
    nats = 2 * np.exp(0.8 * nats - 0.32)
    bytes_ = 1 + 3 * nats * rng.random(nats.shape, np.float32)
    assert 0.90 <= share_held(sums(nats, blocks), sums(bytes_, blocks), TRUTH) <= 0.99


def test_what_lasts_longer_than_a_block_is_still_seen() -> None:
    """The same blocks, in order and shuffled as if independent."""
    nats, bytes_ = texts(np.random.default_rng(4), 1, 60, stay=2000)
    shuffled = np.random.default_rng(5).permutation(60)
    inorder = ratio_interval(nats[0], bytes_[0])
    mixed = ratio_interval(nats[0][shuffled], bytes_[0][shuffled])
    assert inorder.blocks == 60 > MAX_BLOCKS
    assert inorder.variance > 1.2 * mixed.variance


def test_variance_and_interval_are_those_of_the_theory() -> None:
    rng = np.random.default_rng(6)
    numerator_K, denominator_K = rng.normal(100, 5, 20), np.full(20, 200.0)
    found = ratio_interval(numerator_K, denominator_K)
    assert found == ratio_interval(numerator_K, denominator_K), "the interval is deterministic"
    assert found.value == pytest.approx(numerator_K.sum() / 4000)
    assert found.variance == pytest.approx((numerator_K / 200).var(ddof=1) / 20, rel=0.05)
    assert found.interval
    low, high = found.interval
    t = 2.093  # of 19 degrees of freedom, from a table
    assert high - low == pytest.approx(2 * t * math.sqrt(found.variance), rel=0.04)
    assert low < found.value < high
    wider = ratio_interval(numerator_K, denominator_K, comparisons=3)
    assert wider.level == pytest.approx(1 - 0.05 / 3)
    assert wider.interval
    assert wider.interval[0] < low < high < wider.interval[1]


def test_too_short_empty_or_impossible_texts_have_no_interval() -> None:
    ones = np.ones(9)
    assert ratio_interval(ones, 2 * ones)[:2] == (0.5, None)
    padded = ratio_interval(np.ones(20), np.array([0.0, 1.0] * 9 + [0.0] * 2))
    assert padded.interval is None, "blocks without bytes do not count"
    assert (padded.value, padded.blocks) == (20 / 9, 9)
    for nats in (np.array([]), np.array([math.inf] * 20), np.array([math.nan] * 20)):
        found = paired_difference(nats, nats, np.ones(len(nats)))
        assert math.isnan(found.value)
        assert found.interval is None
        assert verdict("a", "b", found).startswith("no verdict: ")
    nothing = np.zeros((3, 12))
    assert math.isnan(seeds_difference(nothing, nothing, np.zeros(12)).value)


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    nats, bytes_ = texts(np.random.default_rng(7), 1, 40)
    noise = np.random.default_rng(8).normal(0, 3, 40)
    found = paired_difference(1.02 * nats[0] + noise, nats[0], bytes_[0])
    assert found.value == pytest.approx(0.02 * TRUTH / math.log(2), rel=0.2)
    assert found.variance < ratio_interval(nats[0] / math.log(2), bytes_[0]).variance / 20
    assert direction(found) == 1


# --- intervals over seeds ---


def test_students_t_over_seeds_and_text() -> None:
    found = t_interval(np.array([0.01, 0.02, 0.03]), variance=0.0001)
    half = 4.3027 * math.sqrt(0.0001 / 3 + 0.0001)  # t of 2 degrees of freedom, from a table
    assert found == pytest.approx((0.02 - half, 0.02 + half), rel=1e-4)
    assert t_interval(np.array([0.01, 0.02]), variance=0.0) is None


def test_seeds_difference_is_the_interval_over_both() -> None:
    rng = np.random.default_rng(9)
    bytes_K = np.full(20, 2000.0)
    nats_a_SK, nats_b_SK = rng.normal(1010, 5, (5, 20)), rng.normal(1000, 5, (5, 20))
    found = seeds_difference(nats_a_SK, nats_b_SK, bytes_K)
    differences_S = (nats_a_SK - nats_b_SK).sum(1) / (math.log(2) * 40_000)
    text = paired_difference(nats_a_SK.mean(0), nats_b_SK.mean(0), bytes_K)
    assert found.runs == 5
    assert found.value == pytest.approx(differences_S.mean())
    assert found.variance == pytest.approx(text.variance)
    assert found.interval == pytest.approx(t_interval(differences_S, variance=text.variance))
    two = seeds_difference(nats_a_SK[:2], nats_b_SK[:2], bytes_K)
    assert two.interval is None
    assert verdict("gru", "lstm", two) == "not enough runs to tell: 2 of each, 3 are needed"
    short = seeds_difference(nats_a_SK[:, :9], nats_b_SK[:, :9], bytes_K[:9])
    assert short.runs == 5
    assert verdict("gru", "lstm", short).startswith("not enough text to tell: 9 blocks")


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("seeds", [3, 5])
def test_false_alarms_are_rare_and_real_differences_found(seeds: int, skewed: bool) -> None:
    """Simulated comparisons of runs from one distribution, each on a separate text."""
    rng = np.random.default_rng(10)
    runs = rng.gamma(4, 0.5, (2, 1000, seeds)) if skewed else rng.normal(0, 1, (2, 1000, seeds))
    alarms = found = 0
    for a_S, b_S in zip(runs[0], runs[1], strict=True):
        difference_S = a_S - b_S
        text = rng.normal(0, 0.3)  # effect of this text on the difference of every seed
        interval = t_interval(difference_S + text, variance=0.09)
        assert interval
        alarms += not interval[0] <= 0 <= interval[1]
        error = math.sqrt(2 / seeds + 0.09)  # true standard error of the mean
        shifted = t_interval(difference_S + text + 5 * error, variance=0.09)
        assert shifted
        found += shifted[0] > 0
    assert alarms <= 80
    assert found >= {3: 650, 5: 920}[seeds]  # few seeds estimate their spread poorly


# --- words ---


def estimate(low: float, high: float, *, runs: int | None = 5, level: float = 0.95) -> Estimate:
    return Estimate((low + high) / 2, (low, high), 0.0, level, 100, runs)


def test_verdicts() -> None:
    better = "{} predicts this text better than {} at equal parameters: 0.0210 bits per byte fewer "
    at = "at equal parameters"
    assert verdict("gru", "lstm", estimate(0.012, 0.030), at=at) == (
        better.format("lstm", "gru") + "(95 % interval 0.0120 to 0.0300)"
    )
    assert verdict("gru", "lstm", estimate(-0.03004, -0.01196, level=1 - 0.05 / 3), at=at) == (
        better.format("gru", "lstm") + "(98.33 % interval 0.0119 to 0.0301)"
    )
    assert verdict("gru", "lstm", estimate(-0.0042, 0.01341)) == (
        "no difference found between gru and lstm on this text; "
        "a difference larger than 0.0135 bits per byte is excluded (95 % interval)"
    )
    assert "a difference larger than 0.0135 " in verdict("a", "b", estimate(-0.01341, 0.0042))
    assert verdict("A", "B", estimate(0.1, 0.3, runs=None)) == (
        "B predicts this text better than A: 0.20 bits per byte fewer "
        "(95 % interval 0.10 to 0.30, over the text alone: other seeds may differ)"
    )


@pytest.mark.parametrize(("cells", "level"), [("ab", 0.95), ("abc", 1 - 0.05 / 3)])
def test_an_interval_is_called_ci95_only_where_it_is_one(cells: str, level: float) -> None:
    rng = np.random.default_rng(7)
    _, bytes_SK = texts(rng, 1, 40)
    sums = {
        cell: [
            {"nats": (bytes_SK[0] + rng.normal(size=40)).tolist(), "bytes": bytes_SK[0].tolist()}
            for _ in range(4)
        ]
        for cell in cells
    }
    found = cells_differences(sums, at="at equal width", by="by hand")
    assert len(found) == len(cells) * (len(cells) - 1) // 2
    for each in found:
        assert each["level"] == pytest.approx(level)
        assert each["interval"][0] < each["bits_per_byte"] < each["interval"][1]
        assert ("ci95" in each) == (level == 0.95)
        assert each.get("ci95", each["interval"]) == each["interval"]
        assert f"{100 * level:.4g} % interval" in each["verdict"]
        assert each["verdict"].endswith("; by hand")
    if len(cells) == 3:  # of its own each would have a narrower one
        (alone,) = cells_differences({c: sums[c] for c in "ab"}, at="", by="")
        assert alone["interval"][0] > found[0]["interval"][0]


def test_a_model_is_not_better_than_itself() -> None:
    """Rounding that depends on the batch: consistent differences that mean nothing."""
    nats, bytes_ = texts(np.random.default_rng(11), 1, 20)
    for factor in (1.0, 1 + 1e-7, 1 - 1e-6):
        found = paired_difference(nats[0], factor * nats[0], bytes_[0])
        assert direction(found) == 0
        assert verdict("a", "b", found).startswith("no difference found between a and b on this")


@given(st.floats(-2, 2, allow_subnormal=False), st.floats(1e-7, 2))
def test_a_verdict_prints_no_interval_narrower_than_it_is(middle: float, half: float) -> None:
    said = verdict("a", "b", estimate(middle - half, middle + half)).replace("95 %", "")
    numbers = [float(number) for number in re.findall(r"[0-9.]+", said)]
    slack = 1e-6 * half + 1e-12
    if direction(estimate(middle - half, middle + half)):
        assert numbers[1] <= abs(middle) - half + slack
        assert numbers[2] >= abs(middle) + half - slack
        assert numbers[2] - numbers[1] <= 2.5 * max(half, 1e-6) + 4e-6
    else:
        assert numbers[0] >= abs(middle) + half - slack


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (0.0213456, 0.00912, ("0.0213", "0.0091")),
        (1.23456, 0.0996, ("1.23", "0.10")),
        (-0.00001, 0.02, ("0.000", "0.020")),
        (1234.5, 123.0, ("1230", "120")),
        (61.44, 4.26, ("61.4", "4.3")),
    ],
)
def test_rounding_goes_by_the_half_width(
    value: float, half: float, expected: tuple[str, str]
) -> None:
    assert rounded(value, half) == expected


@pytest.mark.parametrize("records", [30, 20_000])
def test_intervals_over_records_have_their_nominal_coverage(
    records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of very different frequency: long ones are surprising, and some are there many times."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1_000)
    rng = np.random.default_rng(7)
    nats = rng.gamma(2.0, 3.0, 500)
    sizes = 2 + np.floor(nats * rng.random(500) * 2)
    share = 1 / np.arange(1, 501)
    share /= share.sum()
    truth = (share * nats).sum() / (share * sizes).sum()
    keys = rng.integers(0, 1 << 63, 500).astype(np.uint64)
    held, lists = 0, 300
    for _ in range(lists):
        drawn = rng.choice(500, records, p=share)
        low, high = records_interval(nats[drawn], sizes[drawn], keys[drawn]).interval or (0, 0)
        held += low <= truth <= high
    assert 0.92 <= held / lists <= 0.98


def test_intervals_over_records_do_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(3)
    of = rng.integers(0, 900, 5_000)  # many equal ones
    nats, sizes = rng.gamma(2.0, 3.0, 900)[of], rng.integers(2, 12, 900)[of]
    keys = rng.integers(0, 1 << 63, 900).astype(np.uint64)[of]
    plain = records_interval(nats, sizes, keys)
    assert plain.interval
    for order in (np.argsort(nats), np.argsort(keys), rng.permutation(5_000)):
        other = records_interval(nats[order], sizes[order], keys[order])
        assert other.interval == pytest.approx(plain.interval, rel=1e-12)
    assert records_interval(nats[:9], sizes[:9], keys[:9]).interval is None
    # Sorted records in blocks would give an interval that is far too wide.
    order = np.argsort(nats / sizes)
    low, high = ratio_interval(nats[order], sizes[order]).interval or (0, 0)
    assert high - low > 5 * (plain.interval[1] - plain.interval[0])
