"""Measures texts: documents in, counts and tables of surprisal out.

Brings tokenizer, text counts and scoring together, in three modes: `stream` carries the state
through each document, `line` resets it at each line, `columns` cuts all of the text as validation
does. Knows no run and no terminal. Invariants: every token is scored, and portions reach the tables
in text order; between two documents stands one end-of-document token of zero bytes, charged to the
first of the two; memory does not grow with the text (line mode holds whole lines).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from gru_lm.evaluation.metrics import Counts, TextCounter
from gru_lm.evaluation.scoring import Portion, Tokens, columns, lines, score
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.documents import Document, readings
from gru_lm.text.tokenizer import Tokenizer

# (batch, chunk) as measured to be fastest. Lines are short: a short chunk wastes less on padding.
FASTEST = {"stream": (16, 512), "line": (64, 16), "columns": (64, 128)}
_BLOCK = 1 << 16  # tokens of a portion in columns mode

Table = Callable[[Portion], None]


def measure(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    mode: str = "stream",
    batch: int | None = None,
    chunk: int | None = None,
    tables: Sequence[Table] = (),
    stop: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Counts]:
    """The counts of each document. `progress` hears of UTF-8 bytes scored, as tokens stand for them.

    Every portion is handed to each of `tables`. Raises what documents raise while they are read.
    """
    counters = [TextCounter() for _ in documents]
    encoded = [
        tokenizer.encode(counter.watch(document.pieces()))
        for counter, document in zip(counters, documents, strict=True)
    ]
    # What follows each document: its end, but nothing after the last one.
    tails = [[tokenizer.end_id]] * (len(documents) - 1) + [[]]
    whole = map(_followed, encoded, tails)
    size_V = np.array([len(tokenizer.surface(token)) for token in range(tokenizer.vocab_size)])

    def scored(tokens_N: np.ndarray) -> None:
        progress(int(size_V[tokens_N].sum()))

    fastest = FASTEST[mode]
    batch, chunk = batch or fastest[0], chunk or fastest[1]
    newline_id = tokenizer.newline_id
    if mode == "columns":
        portions = _in_columns(
            model, whole, newline_id, batch=batch, chunk=chunk, stop=stop, progress=scored
        )
    else:
        by_line = _by_line(encoded, tails, newline_id)
        sequences = by_line if mode == "line" else enumerate(whole)
        portions = score(
            model,
            sequences,
            newline_id=newline_id,
            batch=batch,
            chunk=chunk,
            stop=stop,
            progress=scored,
        )
    found = [Counts() for _ in documents]
    for portion in portions:
        found[portion.document] += _counts(portion, tokenizer.unknown_id)
        for table in tables:
            table(portion)
    # Only now has every document been read to its end.
    return [
        surprisal + counter.counts() for surprisal, counter in zip(found, counters, strict=True)
    ]


@cache
def text_counts(documents: tuple[Document, ...]) -> Counts:
    """What the texts themselves count: characters, bytes, words and lines."""
    counter = TextCounter()
    for pieces in readings(documents):
        for piece in pieces:
            counter.add(piece)
    return counter.counts()


def _followed(chunks: Iterable[Tokens], tail: list[int]) -> Iterator[Tokens]:
    yield from chunks
    yield tail


def _by_line(
    encoded: Iterable[Iterable[Tokens]], tails: Iterable[list[int]], newline_id: int
) -> Iterator[tuple[int, Iterable[Tokens]]]:
    for number, (chunks, tail) in enumerate(zip(encoded, tails, strict=True)):
        for line in lines(chunks, newline_id=newline_id, tail=tail):
            yield number, line


def _in_columns(
    model: LanguageModel,
    encoded: Iterable[Iterable[Tokens]],
    newline_id: int,
    *,
    batch: int,
    chunk: int,
    stop: Callable[[], None],
    progress: Callable[[np.ndarray], None],
) -> Iterator[Portion]:
    """Score all documents in a row by columns; tokens and results wait in temporary files."""
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
        result_file.truncate(8 * N)
        tokens_N = np.memmap(token_file, np.int32, "r", shape=(N,))
        log_probs_N = np.memmap(result_file, np.float64, "r+", shape=(N,))
        for positions_BT, valid_BT, log_probs_BT in columns(
            model, tokens_N, newline_id=newline_id, batch=batch, chunk=chunk, stop=stop
        ):
            scored_N = positions_BT[valid_BT]
            log_probs_N[scored_N] = log_probs_BT.cpu().numpy()[valid_BT]
            progress(tokens_N[scored_N])
        for number, (start, end) in enumerate(pairwise(ends)):
            for begin in range(start, end, _BLOCK):
                block = slice(begin, min(end, begin + _BLOCK))
                yield Portion(number, np.array(tokens_N[block]), np.array(log_probs_N[block]))


def _counts(portion: Portion, unknown_id: int | None) -> Counts:
    unknown_N = portion.log_probs_N[portion.tokens_N == unknown_id]
    return Counts(
        tokens=len(portion.tokens_N),
        nats=-float(portion.log_probs_N.sum()),
        unknown_tokens=len(unknown_N),
        unknown_nats=-float(unknown_N.sum()),
    )


class PerToken:
    """A table with a row for every scored token, as it is scored; `index` counts from 0."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._file = file
        self._pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self._index = 0
        file.write(b"index\tid\tpiece\tsurprisal_bits\n")

    def __call__(self, portion: Portion) -> None:
        bits_N = portion.log_probs_N / -math.log(2)
        rows = zip(portion.tokens_N.tolist(), bits_N.tolist(), strict=True)
        # Nine digits hold every float32.
        text = "".join(
            f"{index}\t{token}\t{self._pieces[token]}\t{bits:.9g}\n"
            for index, (token, bits) in enumerate(rows, self._index)
        )
        self._index += len(portion.tokens_N)
        self._file.write(text.encode())


class PerLine:
    """A table with a row for every line, numbered from 1 through all documents.

    A line has its own newline; the last line of a document has the end-of-document token too.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._file = file
        self._newline_id = tokenizer.newline_id
        # A foreign model may end lines and documents alike; then nothing follows a newline.
        self._end_id = tokenizer.end_id if tokenizer.end_id != tokenizer.newline_id else -1
        self._number, self._document = 1, 0
        self._tokens, self._nats = 0, 0.0
        self._complete = False  # a newline has come, and only the document's end may still follow
        file.write(b"line\ttokens\tnats\n")

    def __call__(self, portion: Portion) -> None:
        if portion.document != self._document:
            self._document = portion.document
            self._close()
        starts_N = np.flatnonzero(portion.tokens_N[:-1] == self._newline_id) + 1
        starts_N = np.concatenate(([0], starts_N))
        nats_N = -np.add.reduceat(portion.log_probs_N, starts_N)
        sizes_N = np.diff(starts_N, append=len(portion.tokens_N))
        for start, size, nats in zip(starts_N, sizes_N.tolist(), nats_N.tolist(), strict=True):
            if self._complete and portion.tokens_N[start] != self._end_id:
                self._close()
            self._tokens += size
            self._nats += nats
            self._complete = portion.tokens_N[start + size - 1] == self._newline_id

    def finish(self) -> None:
        """Write the last line."""
        self._close()

    def _close(self) -> None:
        if self._tokens:
            self._file.write(f"{self._number}\t{self._tokens}\t{self._nats:.9g}\n".encode())
            self._number += 1
        self._tokens, self._nats, self._complete = 0, 0.0, False
