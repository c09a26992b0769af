"""Uniform random numbers by their place: seed, prompt, number of the draw, position in it.

Each draw has a SplitMix64 sequence of its own (Steele, Lea and Flood 2014) that starts at a hash of its
place, so that numbers can be computed for any draws, at any positions, in any order. Knows no models.

Shapes: N draws.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def base_of(seed: int, prompt: int) -> Words:
    """What the sequences of a prompt start from, [1]; both are any non-negative integers."""
    return np.random.SeedSequence((seed, prompt)).generate_state(1, np.uint64).astype(np.uint64)


def sequences(base_1: Words, numbers_N: npt.NDArray[np.int64]) -> Words:
    """The start of each draw's sequence [N]."""
    return _mixed(base_1 + _mixed(_STEP * (numbers_N.astype(np.uint64) + np.uint64(1))))


def uniform(sequences_N: Words, positions_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The number of each draw at a position, [N] in [0, 1), with 53 bits."""
    words_N = _mixed(sequences_N + _STEP * (positions_N.astype(np.uint64) + np.uint64(1)))
    numbers_N = (words_N >> np.uint64(11)).astype(np.float64)
    numbers_N *= 2.0**-53
    return numbers_N


def _mixed(words_N: Words) -> Words:
    """A bijection of 64-bit words in which every bit depends on every other."""
    words_N = (words_N ^ (words_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words_N = (words_N ^ (words_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words_N ^ (words_N >> np.uint64(31))
