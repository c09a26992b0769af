"""Batches are a pure function of the position and cover the text without gaps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.text import batches
from gru_lm.text.batches import Batches

SIZES = st.tuples(st.integers(2, 400), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))


def make(size: int, batch: int, bptt: int, seed: int = 0) -> Batches:
    return Batches(tokens=np.arange(size, dtype=np.uint16), batch=batch, bptt=bptt, seed=seed)


@given(SIZES)
def test_targets_follow_inputs_and_streams_continue(sizes: tuple[int, int, int, int]) -> None:
    size, batch, bptt, position = sizes
    b = make(size, batch, bptt)
    here, following = b(position), b(position + 1)
    assert np.array_equal((here.inputs_BT + 1) % size, here.targets_BT)
    assert np.array_equal(here.targets_BT[:, -1], following.inputs_BT[:, 0])
    again = make(size, batch, bptt)(position)
    assert np.array_equal(here.inputs_BT, again.inputs_BT)
    assert np.array_equal(here.reset_B, again.reset_B)


@given(SIZES)
def test_an_epoch_covers_every_token(sizes: tuple[int, int, int, int]) -> None:
    size, batch, bptt, _ = sizes
    b = make(size, batch, bptt)
    steps = -(-size // (batch * bptt)) + 1  # parts may differ by one token in length
    seen = {int(t) for position in range(steps) for t in b(position).targets_BT.flat}
    assert seen == set(range(size))


def test_reset_rate() -> None:
    b = make(1000, 50, 4)
    rate = np.mean([b(position).reset_B.mean() for position in range(2000)])
    assert abs(rate - batches.RESET) < 0.002


def test_resets_depend_on_the_seed() -> None:
    first, second = make(1000, 50, 4, seed=1), make(1000, 50, 4, seed=2)
    assert any(
        not np.array_equal(first(position).reset_B, second(position).reset_B)
        for position in range(100)
    )
