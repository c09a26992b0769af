"""Batches of records: every record once an epoch, in a new order, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gru_lm.text.record_batches import (
    MOST_TOKENS,
    PADDING,
    RecordBatches,
    RecordTokens,
    packed,
    permuted,
)

FIRST = 1000  # the input before a record's first token


def listed(lengths: list[int]) -> RecordTokens:
    """Records of these lengths; token i of record r is 10,000 r + i."""
    tokens = np.concatenate([10_000 * r + np.arange(n) for r, n in enumerate(lengths)])
    return RecordTokens(tokens, np.cumsum(lengths), FIRST)


def read(batches: RecordBatches, steps: range) -> list[list[int]]:
    """The records in the steps, as rows hold them: cut where one starts."""
    rows: list[list[list[int]]] = [[] for _ in range(batches.batch)]
    last = [FIRST] * batches.batch
    for step in steps:
        batch = batches(step)
        assert batch.starts_BT is not None
        assert not batch.reset_B.any()
        for row, (inputs, targets, starts) in enumerate(
            zip(batch.inputs_BT, batch.targets_BT, batch.starts_BT, strict=True)
        ):
            for before, token, start in zip(inputs, targets, starts, strict=True):
                if token == PADDING:
                    continue
                if start:
                    rows[row].append([])
                else:
                    assert before == last[row]
                if token % 10_000 == 0:
                    assert start
                    assert before == FIRST
                rows[row][-1].append(int(token))
                last[row] = int(token)
    return [record for row in rows for record in row]


@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_a_permutation_is_one_to_one(size: int, seed: int, epoch: int) -> None:
    images = permuted(np.arange(size), size, (seed, epoch))
    assert sorted(images.tolist()) == list(range(size))
    some = np.arange(size)[::3]
    assert permuted(some, size, (seed, epoch)).tolist() == images[::3].tolist()


def test_all_orders_of_a_permutation_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        order = tuple(permuted(np.arange(4), 4, (7, epoch)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi_squared = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_squared < 49.7  # 23 degrees of freedom, p = 0.001


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=80),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 100),
)
def test_every_record_is_read_whole_once_an_epoch(
    lengths: list[int], batch: int, bptt: int, seed: int
) -> None:
    records = listed(lengths)
    batches = RecordBatches(records=records, batch=batch, bptt=bptt, seed=seed)
    chapters = -(-2 * len(lengths) // batches.count)  # at least two epochs
    widths = [batches(step).targets_BT.shape[1] for step in range(chapters * batches.steps)]
    assert min(widths) > 0
    assume(min(widths) > 1)  # a column may be read twice if there are fewer than steps
    seen = read(batches, range(chapters * batches.steps))
    longest_part = max(map(len, seen))
    starts = [record for record in seen if record[0] % 10_000 == 0]
    drawn = [record[0] // 10_000 for record in starts]
    assert len(drawn) == chapters * batches.count
    for number in range(len(lengths)):
        assert abs(drawn.count(number) - len(drawn) / len(lengths)) <= 1
    if longest_part == max(lengths):  # none was cut
        assert all(len(record) == lengths[record[0] // 10_000] for record in seen)
    assert sum(map(len, seen)) == sum(lengths[number] for number in drawn)


def test_an_epoch_has_an_order_of_its_own() -> None:
    batches = RecordBatches(records=listed([5] * 400), batch=4, bptt=10, seed=3)
    drawn = np.concatenate([batches.order(chapter) for chapter in range(1200 // batches.count)])
    orders = [drawn[start : start + 400].tolist() for start in (0, 400, 800)]
    assert len({tuple(order) for order in orders}) == 3
    assert [sorted(order) for order in orders] == [list(range(400))] * 3
    again = RecordBatches(records=listed([5] * 400), batch=4, bptt=10, seed=4)
    assert again.order(0).tolist() != batches.order(0).tolist()


@pytest.mark.parametrize(
    "lengths",
    [
        [8] * 5000,
        [11] * 5000,
        [21] * 3000,
        [49] * 2000,
        [*range(3, 17)] * 300,
        [*range(20, 120)] * 40,
        [10] * 4000 + [3000],
        [int(x) + 1 for x in np.random.default_rng(0).lognormal(6, 1, 3000)],
    ],
)
def test_padding_is_at_most_a_tenth(lengths: list[int]) -> None:
    batches = RecordBatches(records=listed(lengths), batch=24, bptt=48, seed=0)
    size = trained = 0
    for step in range(4 * batches.steps):
        targets = batches(step).targets_BT
        size += targets.size
        trained += int((targets != PADDING).sum())
    assert trained > 0.9 * size
    assert trained / (4 * batches.steps) == pytest.approx(24 * 48, rel=0.1)


def test_a_batch_is_a_function_of_its_position() -> None:
    batches = RecordBatches(records=listed([*range(1, 40)] * 9), batch=3, bptt=16, seed=5)
    order = np.random.default_rng(1).permutation(60).tolist()
    apart = {step: batches(step) for step in order}
    for step in range(60):
        again = RecordBatches(records=batches.records, batch=3, bptt=16, seed=5)(step)
        for name in ("inputs_BT", "targets_BT", "starts_BT"):
            assert np.array_equal(getattr(apart[step], name), getattr(again, name))


def test_a_record_beyond_a_row_is_cut_or_kept() -> None:
    records = listed([3, 100, 2])
    numbers = np.arange(3)
    _, targets, starts = packed(records, numbers, 3)
    assert targets.shape == (3, 35)
    assert starts.sum() == 5  # the long one in three parts
    inputs, targets, starts = packed(records, numbers, 3, cut=False)
    assert targets.shape == (3, 100)
    assert starts[:, 0].all()
    assert starts.sum() == 3
    assert (inputs[:, 0] == FIRST).all()


def test_a_chapter_is_held_in_memory_and_therefore_bounded() -> None:
    records = RecordTokens(
        np.zeros(10 * MOST_TOKENS, np.uint8), np.array([9 * MOST_TOKENS, 10 * MOST_TOKENS]), 0
    )
    batches = RecordBatches(records=records, batch=24, bptt=48, seed=0)
    assert batches.steps * 24 * 48 < 1.01 * MOST_TOKENS
