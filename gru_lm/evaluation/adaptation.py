"""Shared parts of the neural cache and dynamic evaluation: segments of a document, and tuning.

Both methods, in cache.py and dynamic.py, read one document at a time, reset at its start, and score each
token from the tokens before it only. Knows tokens, but no model and no text.

Shapes: T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation.scoring import Tokens

Sequences = Iterable[tuple[int, Iterable[Tokens]]]  # as for `score`: document number, its tokens
S = TypeVar("S")


@dataclass(frozen=True)
class Tuned(Generic[S]):
    """Result of a search over settings on the beginning of a text."""

    best: S
    tried: tuple[tuple[S, float], ...]  # in order of trial: settings, nats per token
    tokens: int  # read in each trial

    @staticmethod
    def of(tried: Iterable[tuple[S, float]], tokens: int) -> Tuned[S]:
        """The settings with the lowest nats per token; the first of equals."""
        tried = tuple(tried)
        return Tuned(min(tried, key=lambda trial: trial[1])[0], tried, tokens)


def segments(
    chunks: Iterable[Tokens], *, size: int, newline_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Split a document into segments of `size` tokens: inputs [T] and targets [T].

    The last segment may be shorter. The first input is `newline_id`.

    >>> [(x.tolist(), y.tolist()) for x, y in segments([[5], [6, 7]], size=2, newline_id=0)]
    [([0, 5], [5, 6]), ([6], [7])]
    """
    previous, pending_N = newline_id, np.empty(0, np.int32)
    for chunk in chunks:
        pending_N = np.concatenate((pending_N, np.asarray(chunk, np.int32)))
        while len(pending_N) >= size:
            yield _with_inputs(previous, pending_N[:size])
            previous, pending_N = int(pending_N[size - 1]), pending_N[size:]
    if len(pending_N):
        yield _with_inputs(previous, pending_N)


def _with_inputs(previous: int, tokens_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate((np.array([previous], np.int32), tokens_T[:-1])), tokens_T


def beginning(sequences: Sequences, most: int) -> tuple[list[tuple[int, list[Tokens]]], int]:
    """The first tokens of the documents, at most `most`, kept in memory; and their number.

    Raises InputError if there are none.
    """
    kept: list[tuple[int, list[Tokens]]] = []
    left = most
    for document, chunks in sequences:
        kept.append((document, []))
        for chunk in chunks:
            kept[-1][1].append(np.array(chunk[:left], np.int32))
            left -= len(kept[-1][1][-1])
            if not left:
                return kept, most
    if left == most:
        raise InputError("the text is empty", why="there are no tokens to tune on or to score")
    return kept, most - left


def check_range(what: str, value: float, least: float, most: float) -> None:
    """Raise UsageError unless `value` is within `least` and `most`."""
    if not least <= value <= most:
        raise UsageError(f"{what} must be between {least:g} and {most:g}, not {value:g}")
