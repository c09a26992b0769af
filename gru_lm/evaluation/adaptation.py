"""What both ways of adapting to a text share: documents read segment after segment, and tuning.

The ways themselves are cache.py and dynamic.py. Both read one document at a time, start each anew, and
score a token by what was before it alone. Knows tokens; no model and no text.

Shapes: T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation.scoring import Tokens

Sequences = Iterable[tuple[int, Iterable[Tokens]]]  # as `score` reads them: document, its tokens
S = TypeVar("S")


@dataclass(frozen=True)
class Tuned(Generic[S]):
    """The best of the settings that were tried on the beginning of a text."""

    best: S
    tried: tuple[tuple[S, float], ...]  # in the order of trial, with nats a token
    tokens: int  # that each was tried on

    @staticmethod
    def of(tried: Iterable[tuple[S, float]], tokens: int) -> Tuned[S]:
        """The first of those with the least nats a token."""
        tried = tuple(tried)
        return Tuned(min(tried, key=lambda one: one[1])[0], tried, tokens)


def segments(
    chunks: Iterable[Tokens], *, size: int, newline_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A document in segments of `size` tokens, the last maybe shorter: inputs [T] and targets [T].

    >>> [(x.tolist(), y.tolist()) for x, y in segments([[5], [6, 7]], size=2, newline_id=0)]
    [([0, 5], [5, 6]), ([6], [7])]
    """
    last, waiting_N = newline_id, np.empty(0, np.int32)
    for chunk in chunks:
        waiting_N = np.concatenate((waiting_N, np.asarray(chunk, np.int32)))
        while len(waiting_N) >= size:
            yield _with_inputs(last, waiting_N[:size])
            last, waiting_N = int(waiting_N[size - 1]), waiting_N[size:]
    if len(waiting_N):
        yield _with_inputs(last, waiting_N)


def _with_inputs(last: int, tokens_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate((np.array([last], np.int32), tokens_T[:-1])), tokens_T


def beginning(sequences: Sequences, most: int) -> tuple[list[tuple[int, list[Tokens]]], int]:
    """The first tokens of the documents, at most `most`, kept to be read often; and how many.

    Raises InputError where there are none.
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
        raise InputError("the text is empty", why="there is nothing to tune on or to measure")
    return kept, most - left


def check_range(what: str, value: float, least: float, most: float) -> None:
    """Raise UsageError for a value out of its range."""
    if not least <= value <= most:
        raise UsageError(f"{what} must be {least:g} to {most:g}, not {value:g}")
