"""Training batches of records as a pure function of the step number.

Records are drawn in an order shuffled anew each epoch by a keyed permutation, which needs no memory. A
chapter is a fixed number of consecutive records of that order, laid out in B rows of nearly equal length
and read in a fixed number of steps. Records follow each other in a row; where one begins, the state is
zero and the input is `first_id`, as where evaluation and sampling start. Padding is left at the ends of
rows only. Independent of models and devices.

Shapes: B rows, T time, R records of the list, N tokens.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gru_lm.text.batches import Batch, Batches

PADDING = -1  # target that is not trained
PER_ROW = 12  # records in a row of a chapter, on average: padding is at most about a twelfth
LONGEST_SHARE = 2 / 3  # of a row that the longest record may take
MOST_TOKENS = 1 << 22  # of a chapter, which is held in memory

Integers = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class RecordTokens:
    """The tokens [N] of a list, where its records end [R], and the input at a record's start."""

    tokens: Integers
    ends: Integers
    first_id: int

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest record, including its end."""
        return int(max(self.ends[0], np.diff(self.ends).max(initial=0)))

    def some(self, count: int) -> RecordTokens:
        """At most `count` of the records, evenly spread."""
        chosen = np.unique(np.linspace(0, len(self.ends) - 1, count).astype(np.int64))
        starts, ends = self.spans(chosen)
        tokens = [self.tokens[start:end] for start, end in zip(starts, ends, strict=True)]
        return RecordTokens(np.concatenate(tokens), np.cumsum(ends - starts), self.first_id)

    def spans(self, records: npt.NDArray[np.int64]) -> tuple[Integers, Integers]:
        """Where these records start and end."""
        before = self.ends[np.maximum(records - 1, 0)].astype(np.int64)
        return np.where(records > 0, before, 0), self.ends[records].astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordBatches:
    """The training batches of a list, of about `batch` x `bptt` tokens."""

    records: RecordTokens
    batch: int
    bptt: int
    seed: int

    @cached_property
    def steps(self) -> int:
        """Steps of a chapter."""
        least = PER_ROW * len(self.records.tokens) / len(self.records.ends) / self.bptt
        longest = self.records.longest / LONGEST_SHARE / self.bptt
        epoch = len(self.records.tokens) / (self.batch * self.bptt)
        most = MOST_TOKENS / (self.batch * self.bptt)
        return max(1, math.ceil(min(max(least, min(longest, epoch)), most)))

    @cached_property
    def count(self) -> int:
        """Records of a chapter."""
        tokens = self.steps * self.batch * self.bptt
        return max(1, round(tokens * len(self.records.ends) / len(self.records.tokens)))

    def __call__(self, position: int) -> Batch:
        """Return the batch of step `position`, counted from 0 across epochs."""
        chapter, step = divmod(position, self.steps)
        inputs, targets, starts = _chapter(self, chapter)
        length = inputs.shape[1]
        begin = step * length // self.steps
        # At least one column: a chapter of a few short records may have fewer columns than steps.
        part = slice(begin, max(begin + 1, (step + 1) * length // self.steps))
        return Batch(inputs[:, part], targets[:, part], np.zeros(self.batch, bool), starts[:, part])

    def order(self, chapter: int) -> npt.NDArray[np.int64]:
        """The records of a chapter."""
        epochs, places = np.divmod(
            np.arange(chapter * self.count, (chapter + 1) * self.count), len(self.records.ends)
        )
        return np.concatenate(
            [
                permuted(places[epochs == epoch], len(self.records.ends), (self.seed, int(epoch)))
                for epoch in np.unique(epochs)
            ]
        )


def batches_of(
    tokens: Integers | RecordTokens, *, batch: int, bptt: int, seed: int
) -> Batches | RecordBatches:
    """The training batches of running text or of a list."""
    if isinstance(tokens, RecordTokens):
        return RecordBatches(records=tokens, batch=batch, bptt=bptt, seed=seed)
    return Batches(tokens=tokens, batch=batch, bptt=bptt, seed=seed)


@lru_cache(1)
def _chapter(
    batches: RecordBatches, chapter: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    random = np.random.default_rng((batches.seed, 1, chapter))
    return packed(batches.records, batches.order(chapter), batches.batch, random=random)


def packed(
    records: RecordTokens,
    numbers: npt.NDArray[np.int64],
    rows: int,
    *,
    random: np.random.Generator | None = None,
    cut: bool = True,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Lay out records in rows of nearly equal length: inputs, targets and starts, each [B, T].

    With `cut`, a record longer than an equal share of the tokens is cut, and its later parts start at
    the zero state. With `random`, the records of a row are shuffled; otherwise the longest come first.
    """
    starts, ends = records.spans(numbers)
    sizes, is_first = ends - starts, np.ones(len(starts), bool)
    most = max(1, -(-int(sizes.sum()) // rows))
    if cut and int(sizes.max()) > most:
        starts, sizes, is_first = _cut(starts, sizes, most)
    row_of, fill = np.empty(len(sizes), np.int64), [(0, row) for row in range(rows)]
    for item in np.argsort(-sizes, kind="stable").tolist():  # longest first into the shortest row
        length, row = heapq.heappop(fill)
        row_of[item] = row
        heapq.heappush(fill, (length + int(sizes[item]), row))
    within = -sizes if random is None else random.random(len(sizes))
    order = np.lexsort((within, row_of))
    starts, sizes, row_of, is_first = starts[order], sizes[order], row_of[order], is_first[order]

    total = int(sizes.sum())
    first = np.cumsum(sizes) - sizes  # place of each record among all tokens, row by row
    counts = np.bincount(row_of, sizes, minlength=rows).astype(np.int64)
    row_first = np.cumsum(counts) - counts
    columns = np.arange(total) - np.repeat(row_first, counts)
    at_row = np.repeat(np.arange(rows), counts)
    sources = np.arange(total) + np.repeat(starts - first, sizes)
    tokens = records.tokens[sources].astype(np.int64)
    before = records.tokens[np.maximum(sources - 1, 0)].astype(np.int64)
    is_start = np.zeros(total, bool)
    is_start[first] = True
    before[first[is_first]] = (
        records.first_id
    )  # a cut record goes on after the token before the cut

    shape = (rows, int(counts.max()))
    inputs = np.full(shape, records.first_id, np.int64)
    targets = np.full(shape, PADDING, np.int64)
    begins = np.zeros(shape, bool)
    inputs[at_row, columns], targets[at_row, columns] = before, tokens
    begins[at_row, columns] = is_start
    return inputs, targets, begins


def _cut(
    starts: Integers, sizes: Integers, most: int
) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Cut spans into parts of at most `most`: starts, sizes, and whether a part is the first."""
    parts = -(-sizes // most)
    number = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    left = np.repeat(sizes, parts) - number * most
    return np.repeat(starts, parts) + number * most, np.minimum(left, most), number == 0


_ROUNDS = 8
_MIX = np.uint64(0x9E3779B97F4A7C15)


def permuted(
    numbers: npt.NDArray[np.int64], size: int, key: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Images of `numbers` under a keyed permutation of 0 .. size - 1.

    A Feistel network on pairs of digits to the base √size, rounded up (Luby and Rackoff 1988), applied
    again to the few images beyond the size (Black and Rogaway 2002).

    >>> sorted(permuted(np.arange(6), 6, (0, 1)).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    base = np.uint64(math.isqrt(size - 1) + 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    images = numbers.astype(np.uint64)
    pending = np.arange(len(images))
    while len(pending):
        left, right = np.divmod(images[pending], base)
        for round_key in keys:
            mixed = (right + round_key) * _MIX
            mixed ^= mixed >> np.uint64(29)
            mixed *= _MIX
            left, right = right, (left + (mixed >> np.uint64(32))) % base
        images[pending] = left * base + right
        pending = pending[images[pending] >= size]
    return images.astype(np.int64)
