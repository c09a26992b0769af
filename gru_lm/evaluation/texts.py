"""Evaluates texts: documents in, counts and tables of surprisal out.

Combines tokenizer, text counts and scoring in three modes: `stream` carries the state through each
document, `line` resets it at each line, `columns` splits the concatenated text into parallel streams, as
validation does. Independent of runs and terminals. Invariants: every token is scored, and portions reach
the tables in text order; two documents are separated by one end-of-document token of zero bytes, scored
with the first, unless the model was trained without it; memory does not grow with the text (except that
line mode holds whole lines, and columns mode the texts covered by tokens).
"""

from __future__ import annotations

import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gru_lm.evaluation.metrics import Counts, TextCounter
from gru_lm.evaluation.scoring import (
    COLUMN_BATCH,
    COLUMN_CHUNK,
    OfDistribution,
    Portion,
    Tokens,
    columns,
    lines,
    score,
)
from gru_lm.evaluation.spelling import Charges
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never, unheard
from gru_lm.text.documents import Document, readings
from gru_lm.text.tokenizer import Covering, Tokenizer
from gru_lm.text.tokenizer_encoders import begins_character

# Fastest (batch, chunk) in measurements. Lines are short: a short chunk wastes less on padding.
FASTEST = {"stream": (16, 512), "line": (64, 16), "columns": (COLUMN_BATCH, COLUMN_CHUNK)}
_BLOCK = 1 << 16  # tokens of a portion in columns mode


class Covered(NamedTuple):
    """Text covered by N tokens, and their charges (spelling.py)."""

    sizes_N2: np.ndarray  # int64: UTF-8 bytes and characters
    spelling_N: np.ndarray  # nats
    texts: list[bytes] | None  # UTF-8; None: the surfaces of the tokens

    def split(self, count: int) -> tuple[Covered, Covered]:
        """Split into the first `count` tokens and the rest."""
        first, last = slice(count), slice(count, None)
        return (
            Covered(self.sizes_N2[first], self.spelling_N[first], self.texts and self.texts[first]),
            Covered(self.sizes_N2[last], self.spelling_N[last], self.texts and self.texts[last]),
        )


# Called with every portion and the text it covers. A document with a charge but no tokens is passed as a
# portion of no tokens that covers one text.
Table = Callable[[Portion, Covered], None]


def measure(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    mode: str = "stream",
    batch: int | None = None,
    chunk: int | None = None,
    tables: Sequence[Table] = (),
    of_distribution: OfDistribution | None = None,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> list[Counts]:
    """Score `documents`; return the counts of each. `progress` is called with UTF-8 bytes scored.

    Every portion is passed to each of `tables`, with the values that `of_distribution` computes from
    each token's distribution. Errors of reading a document propagate.
    """
    reading = Reading(tokenizer, documents)
    fastest = FASTEST[mode]
    batch, chunk = batch or fastest[0], chunk or fastest[1]
    if mode == "columns":
        portions = _in_columns(
            model,
            (chunks for _, chunks in reading.sequences()),
            tokenizer.newline_id,
            batch=batch,
            chunk=chunk,
            of_distribution=of_distribution,
            stop=stop,
            progress=lambda tokens_N: progress(reading.bytes_of(tokens_N)),
        )
    else:
        portions = score(
            model,
            reading.lines() if mode == "line" else reading.sequences(),
            newline_id=tokenizer.newline_id,
            batch=batch,
            chunk=chunk,
            of_distribution=of_distribution,
            stop=stop,
            progress=lambda tokens_N: progress(reading.bytes_of(tokens_N)),
        )
    return reading.account(portions, tables)


class Reading:
    """Documents as token sequences for scoring, and the bookkeeping of their scores.

    If `tokenizer.ends_documents`, each document except the last is followed by the end-of-document
    token. Single use: the documents are read once.
    """

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[Document]) -> None:
        self._tokenizer = tokenizer
        self._counters = [TextCounter() for _ in documents]
        self._documents = documents
        self._covered = [_Queue(lossless=tokenizer.lossless) for _ in documents]
        self._charges = Charges(tokenizer)
        self._size_V = np.array(
            [len(tokenizer.surface(token)) for token in range(tokenizer.vocab_size)]
        )

    def bytes_of(self, tokens_N: np.ndarray) -> int:
        """Approximate bytes of text of the tokens; unknown tokens count as their surface."""
        return int(self._size_V[tokens_N].sum())

    def sequences(self) -> Iterator[tuple[int, Iterable[Tokens]]]:
        """Yield each document's number, and its tokens in chunks."""
        for number in range(len(self._documents)):
            yield number, self._followed(number)

    def lines(self) -> Iterator[tuple[int, Iterable[Tokens]]]:
        """Yield each line's document number, and its tokens."""
        for number in range(len(self._documents)):
            for line in lines(
                self._encoded(number),
                newline_id=self._tokenizer.newline_id,
                tail=self._tail(number),
            ):
                yield number, line

    def account(self, portions: Iterable[Portion], tables: Sequence[Table] = ()) -> list[Counts]:
        """Return the counts of each document; `portions` must contain all tokens in text order."""
        totals = [Counts() for _ in self._documents]
        for portion, covered in self._with_covered(portions):
            totals[portion.document] += counts_of(portion, self._tokenizer.unknown_id)
            totals[portion.document] += Counts(spelling_nats=float(covered.spelling_N.sum()))
            for table in tables:
                table(portion, covered)
        # The text counters are complete only after every document has been read to its end.
        return [
            surprisal + counter.counts()
            for surprisal, counter in zip(totals, self._counters, strict=True)
        ]

    def _with_covered(self, portions: Iterable[Portion]) -> Iterator[tuple[Portion, Covered]]:
        """Yield portions with the text they cover, including portions of documents without tokens."""
        finished = 0

        def without_tokens(upto: int) -> Iterator[tuple[Portion, Covered]]:
            for number in range(finished, upto):
                if covered := self._covered[number].without_tokens:
                    yield Portion(number, np.empty(0, int), np.empty(0), np.empty((0, 2))), covered

        for portion in portions:
            yield from without_tokens(portion.document)
            finished = portion.document
            yield portion, self._covered[portion.document].take(len(portion.tokens_N))
        yield from without_tokens(len(self._documents))

    def _encoded(self, number: int) -> Iterator[Tokens]:
        pieces = self._counters[number].watch(self._documents[number].pieces())
        for covering, charged_N in self._charges.of(self._tokenizer.encode_covering(pieces)):
            self._covered[number].put(covering, charged_N)
            if len(covering.tokens_N):
                yield covering.tokens_N

    def _followed(self, number: int) -> Iterator[Tokens]:
        yield from self._encoded(number)
        yield self._tail(number)

    def _tail(self, number: int) -> list[int]:
        """The end-of-document token, or nothing; it covers no text."""
        if number == len(self._documents) - 1 or not self._tokenizer.ends_documents:
            return []
        return [self._tokenizer.end_id]


class _Queue:
    """Queue of the text covered by a document's tokens, consumed as tokens are scored."""

    def __init__(self, *, lossless: bool) -> None:
        self._waiting: deque[Covered] = deque()
        self._lossless = lossless
        self.without_tokens: Covered | None = None  # the whole text of a document without tokens

    def put(self, covering: Covering, charged_N: np.ndarray) -> None:
        if len(covering.tokens_N):
            self._waiting.append(Covered(covering.sizes_N2, charged_N, covering.texts))
        elif covering.rest:
            characters = int(begins_character(covering.rest).sum())
            sizes_12 = np.array([[len(covering.rest), characters]])
            self.without_tokens = Covered(sizes_12, charged_N, [covering.rest])

    def take(self, count: int) -> Covered:
        """Remove the text of the next `count` tokens; an end-of-document token covers zero bytes."""
        parts = []
        while count and self._waiting:
            part, rest = self._waiting.popleft().split(count)
            parts.append(part)
            count -= len(part.spelling_N)
            if len(rest.spelling_N):
                self._waiting.appendleft(rest)
        parts.append(Covered(np.zeros((count, 2), np.int64), np.zeros(count), [b""] * count))
        sizes, spelling, texts = zip(*parts, strict=True)
        joined = None if self._lossless else list(itertools.chain.from_iterable(texts))
        return Covered(np.concatenate(sizes), np.concatenate(spelling), joined)


def text_counts(documents: Sequence[Document], tokenizer: Tokenizer, *, stop: Stop) -> Counts:
    """Model-independent counts: characters, bytes, words, lines, and charges (spelling.py)."""
    counter, charges, nats = TextCounter(), Charges(tokenizer), 0.0
    for pieces in readings(documents):
        watched = counter.watch(pieces)
        if tokenizer.lossless:
            for _ in watched:
                stop()
            continue
        for _, charged_N in charges.of(tokenizer.encode_covering(watched)):
            stop()
            nats += float(charged_N.sum())
    return counter.counts() + Counts(spelling_nats=nats)


def _in_columns(
    model: LanguageModel,
    encoded: Iterable[Iterable[Tokens]],
    newline_id: int,
    *,
    batch: int,
    chunk: int,
    of_distribution: OfDistribution | None,
    stop: Stop,
    progress: Callable[[np.ndarray], None],
) -> Iterator[Portion]:
    """Score the concatenated documents by columns; tokens and results are kept in temporary files."""
    with tempfile.TemporaryFile() as token_file, tempfile.TemporaryFile() as result_file:
        ends = [0]
        for chunks in encoded:
            ends.append(ends[-1])
            for tokens in chunks:
                stop()
                token_file.write(np.asarray(tokens, np.int32).tobytes())
                ends[-1] += len(tokens)
        N = ends[-1]
        if N == 0:
            return
        token_file.flush()
        tokens_N = np.memmap(token_file, np.int32, "r", shape=(N,))
        results_NX: np.ndarray | None = None
        for positions_BT, valid_BT, figures_BTX in columns(
            model,
            tokens_N,
            newline_id=newline_id,
            batch=batch,
            chunk=chunk,
            of_distribution=of_distribution,
            stop=stop,
        ):
            if results_NX is None:
                X = figures_BTX.shape[2]
                result_file.truncate(8 * N * X)
                results_NX = np.memmap(result_file, np.float64, "r+", shape=(N, X))
            scored_N = positions_BT[valid_BT]
            results_NX[scored_N] = figures_BTX.cpu().numpy()[valid_BT]
            progress(tokens_N[scored_N])
        assert results_NX is not None
        for number, (start, end) in enumerate(pairwise(ends)):
            for begin in range(start, end, _BLOCK):
                block = slice(begin, min(end, begin + _BLOCK))
                figures_nX = np.array(results_NX[block])
                yield Portion(
                    number, np.array(tokens_N[block]), figures_nX[:, 0], figures_nX[:, 1:]
                )


def counts_of(portion: Portion, unknown_id: int | None) -> Counts:
    """The counts of scored tokens."""
    unknown_N = portion.log_probs_N[portion.tokens_N == unknown_id]
    return Counts(
        tokens=len(portion.tokens_N),
        nats=-float(portion.log_probs_N.sum()),
        unknown_tokens=len(unknown_N),
        unknown_nats=-float(unknown_N.sum()),
    )
