"""Choice of the next token: filters against their definitions, and the draw against the CDF."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.errors import UsageError
from gru_lm.generation import choice as choosing
from gru_lm.generation.choice import Choice, draw, normalise

# One row of log-probabilities, with ties and with tokens of probability 0.
ROW = st.lists(
    st.sampled_from([-math.inf, -3.0, -2.0, -1.0, 0.0]) | st.floats(-20, 0), min_size=1, max_size=12
).filter(lambda row: max(row) > -math.inf)


def as_rows(row: list[float]) -> np.ndarray:
    return normalise(np.array([row, [*row[1:], row[0]]]))


def kept(log_probs_NV: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in log_probs_NV]


def check_kept(before: np.ndarray, after: np.ndarray) -> list[set[int]]:
    """Assert that the kept tokens keep their ratios and sum to one."""
    np.testing.assert_allclose(np.exp(after).sum(axis=1), 1)
    for old, new, tokens in zip(before, after, kept(after), strict=True):
        some = sorted(tokens)
        shift = new[some] - old[some]
        np.testing.assert_allclose(shift, shift[0], atol=1e-9)
    return kept(after)


def fewest(probs: Sequence[float], order: Iterable[int], mass: float) -> set[int]:
    chosen: set[int] = set()
    total = 0.0
    for token in order:
        if total >= mass:
            break
        chosen.add(token)
        total += probs[token]
    return {token for token in chosen if probs[token] > 0}


@given(ROW, st.integers(1, 14))
def test_top_k(row: list[float], k: int) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, choosing.keep_top_k(before, k)), strict=True
    ):
        least = sorted(probs, reverse=True)[min(k, len(probs)) - 1]
        assert found == {t for t, p in enumerate(probs) if p >= least and p > 0}


@given(ROW, st.floats(0.01, 0.99))
def test_top_p(row: list[float], p: float) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, choosing.keep_top_p(before, p)), strict=True
    ):
        order = sorted(range(len(probs)), key=lambda t: (-probs[t], t))
        total = math.fsum(probs[t] for t in found)
        assert total >= p - 1e-9
        assert len(found) <= len(fewest(probs, order, p + 1e-9))
        assert len(found) >= len(fewest(probs, order, p - 1e-9))


@given(ROW, st.floats(0.001, 1))
def test_min_p(row: list[float], p: float) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, choosing.keep_min_p(before, p)), strict=True
    ):
        assert found >= {t for t, q in enumerate(probs) if q >= p * max(probs) * (1 + 1e-9)}
        assert found <= {t for t, q in enumerate(probs) if q >= p * max(probs) * (1 - 1e-9)}
        assert int(np.argmax(probs)) in found


@given(ROW, st.floats(0.01, 0.99))
def test_typical(row: list[float], mass: float) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, choosing.keep_typical(before, mass)), strict=True
    ):
        entropy = -sum(p * math.log(p) for p in probs if p > 0)
        far = {t: abs(-math.log(p) - entropy) for t, p in enumerate(probs) if p > 0}
        assert found
        assert math.fsum(probs[t] for t in found) >= mass - 1e-9
        left_out = [distance for t, distance in far.items() if t not in found]
        farthest = max(far[t] for t in found)
        assert all(distance >= farthest - 1e-9 for distance in left_out)
        # The set is minimal: without the token furthest from the entropy, the mass is not reached.
        last = min((t for t in found if far[t] >= farthest - 1e-9), key=lambda t: probs[t])
        rest = math.fsum(probs[t] for t in found) - max(
            probs[t] for t in found if far[t] >= farthest - 1e-9
        )
        assert rest < mass + 1e-9 or probs[last] == 0


@given(ROW, st.floats(0.01, 50))
def test_temperature(row: list[float], temperature: float) -> None:
    before = as_rows(row)
    powered = np.exp(before - before.max(axis=1, keepdims=True)) ** (1 / temperature)
    powered /= powered.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(choosing.apply_temperature(before, temperature)), powered, atol=1e-9
    )


def test_a_tiny_temperature_is_greedy_and_no_number_overflows() -> None:
    for temperature in (1e-308, 5e-324):
        found = choosing.apply_temperature(as_rows([-1.0, -2.0, -math.inf]), temperature)
        assert np.exp(found[0]).tolist() == [1, 0, 0]


@given(ROW, st.floats(0.1, 10))
def test_repetition_penalty(row: list[float], penalty: float) -> None:
    before = as_rows(row)
    seen = np.zeros(before.shape, bool)
    seen[:, ::2] = True
    powered = np.exp(before)
    powered[seen] **= penalty
    powered /= powered.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(choosing.penalise_repetition(before, seen, penalty)), powered, rtol=1e-6, atol=1e-12
    )


@given(ROW, st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_distribution(row: list[float], u: float) -> None:
    log_probs = as_rows(row)
    for probs, token in zip(np.exp(log_probs), draw(log_probs, np.array([u, u])), strict=True):
        assert probs[token] > 0
        assert math.fsum(probs[:token]) <= u + 1e-9
        assert math.fsum(probs[: token + 1]) >= u - 1e-9


def test_draw_never_takes_what_cannot_be() -> None:
    log_probs = np.array([[-math.inf, -math.inf, 0.0, -math.inf]])
    for u in (0.0, 0.5, math.nextafter(1, 0)):
        assert draw(log_probs, np.array([u])).tolist() == [2]


def test_draws_follow_the_distribution() -> None:
    log_probs = np.log(np.array([[0.1, 0.6, 0.3]])).repeat(4000, axis=0)
    counts = np.bincount(draw(log_probs, np.random.default_rng(0).random(4000)))
    np.testing.assert_allclose(counts / 4000, [0.1, 0.6, 0.3], atol=0.03)


def test_filters_work_in_the_documented_order() -> None:
    log_probs = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    seen = np.zeros((1, 4), bool)
    # top-k 2 leaves 4/7 and 3/7, of which top-p 0.55 keeps one token; without top-k it keeps two.
    assert kept(Choice(top_k=2, top_p=0.55).distribution(log_probs, seen)) == [{0}]
    assert kept(Choice(top_p=0.55).distribution(log_probs, seen)) == [{0, 1}]
    assert Choice().distribution(log_probs, seen) is log_probs


def test_greedy_takes_the_best_whatever_the_filters_say() -> None:
    log_probs = np.log(np.array([[0.9, 0.05, 0.05], [0.2, 0.4, 0.4]]))
    seen = np.array([[False, False, False], [False, True, False]])
    for filtered in (Choice(temperature=0), Choice(temperature=0, typical=0.05, top_p=0.1)):
        assert filtered.choose(log_probs, seen, np.array([0.99, 0.99])).tolist() == [0, 1]
    penalised = Choice(temperature=0, repetition_penalty=2)
    assert penalised.choose(log_probs, seen, np.array([0.0, 0.0])).tolist() == [0, 2]


def test_each_option_does_what_its_filter_does() -> None:
    log_probs = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    seen = np.array([[True, False, False, True]])
    for choice, expected in (
        (Choice(temperature=0.7), choosing.apply_temperature(log_probs, 0.7)),
        (Choice(top_k=3), choosing.keep_top_k(log_probs, 3)),
        (Choice(min_p=0.6), choosing.keep_min_p(log_probs, 0.6)),
        (Choice(typical=0.5), choosing.keep_typical(log_probs, 0.5)),
        (Choice(repetition_penalty=2), choosing.penalise_repetition(log_probs, seen, 2)),
    ):
        np.testing.assert_array_equal(choice.distribution(log_probs, seen), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "--temperature -0.1 is out of range"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"min_p": -0.1}, "--min-p"),
        ({"typical": 0.0}, "--typical"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0"),
    ],
)
def test_values_without_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Choice(**wrong)
