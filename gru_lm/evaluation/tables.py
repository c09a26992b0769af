"""Tables of surprisal: a row for every token, word or line, written as portions are scored.

Tab-separated, no quoting (text/tokenizer.py's `escaped`). Surprisals are in bits, but nats a line. Knows
no model. Invariants: the rows of a table add up to the text's total; how the text was cut into portions
does not show.

Shapes: N tokens, V vocabulary, n of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gru_lm.evaluation.scoring import OfDistribution, Portion
from gru_lm.text.documents import Document, beginning
from gru_lm.text.tokenizer import Tokenizer, escaped

LN2 = math.log(2)


def details(tokenizer: Tokenizer) -> OfDistribution:
    """What PerToken and PerWord need of each distribution: [n, 2], in nats.

    Its entropy, and the surprisal of any token that begins with white space or ends a line or text.
    """
    ends_word_V = torch.tensor(
        [_ends_word(tokenizer.surface(token)) for token in range(tokenizer.vocab_size)]
    )

    def of_distribution(log_probs_nV: Tensor) -> Tensor:
        probs_nV = log_probs_nV.exp()
        entropy_n = torch.special.entr(probs_nV).sum(1)
        if tokenizer.kind == "word":  # every token does
            return torch.stack((entropy_n, torch.zeros_like(entropy_n)), 1)
        ended_n = probs_nV[:, ends_word_V.to(probs_nV.device)].double().sum(1).clamp(max=1.0)
        return torch.stack((entropy_n.double(), -ended_n.log()), 1)

    return of_distribution


def _ends_word(surface: bytes) -> bool:
    return not surface or surface.decode(errors="replace")[0].isspace()


class _Place:
    """Where in its file the next token begins: line from 1, character and byte from 0."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents
        self.document = -1
        self.enter(0)

    def enter(self, document: int) -> None:
        if document != self.document:
            self.document = document
            self.line, self.character, self.byte = beginning(self._documents[document])

    def move(self, size_2: Sequence[int], *, newline: bool) -> None:
        self.byte += size_2[0]
        self.character += size_2[1]
        self.line += newline


class PerToken:
    """A row for every scored token; `index` counts from 0 through all documents.

    `character` and `byte`, of the text in UTF-8, are where in its file the token begins; a token that
    spells a part of a character has the place of the character that follows.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, documents: Sequence[Document]) -> None:
        self._file = file
        self._pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self._newline_id = tokenizer.newline_id
        self._names = [escaped(document.name) for document in documents]
        self._index = 0
        self._place = _Place(documents)
        file.write(b"index\tid\tpiece\tsurprisal_bits\tentropy_bits\tfile\tline\tcharacter\tbyte\n")

    def __call__(self, portion: Portion, covered_N3: np.ndarray) -> None:
        place, name = self._place, self._names[portion.document]
        place.enter(portion.document)
        rows = []
        for token, log_prob, entropy, size_2 in zip(
            portion.tokens_N.tolist(),
            portion.log_probs_N.tolist(),
            portion.extra_NX[:, 0].tolist(),
            covered_N3[:, :2].astype(np.int64).tolist(),
            strict=True,
        ):
            # Nine digits hold every float32.
            rows.append(
                f"{self._index}\t{token}\t{self._pieces[token]}\t{log_prob / -LN2:.9g}\t"
                f"{entropy / LN2:.9g}\t{name}\t{place.line}\t{place.character}\t{place.byte}\n"
            )
            self._index += 1
            place.move(size_2, newline=token == self._newline_id)
        self._file.write("".join(rows).encode())


class PerWord:
    """A row for every word, every end of a line and every end of a document; `finish` at the end.

    A word is what white space separates; its place is that of its first token, which may hold the
    space before it. `surprisal_bits` are those of its tokens. `corrected_bits` move such a space to
    where it tells that the word has ended (Oh and Schuler 2024; Pimentel and Meister 2024): less the
    surprisal of any word's beginning where this one begins, plus that where it ends. Both columns add
    up to the same total.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, documents: Sequence[Document]) -> None:
        V = tokenizer.vocab_size
        self._file = file
        self._surfaces = [tokenizer.surface(token) for token in range(V)]
        self._pieces = [tokenizer.piece(token) for token in range(V)]
        self._newline_id, self._end_id = tokenizer.newline_id, tokenizer.end_id
        self._is_word = tokenizer.kind == "word"
        self._names = [escaped(document.name) for document in documents]
        self._place = _Place(documents)
        self._tokens: list[int] = []
        self._nats = self._correction = 0.0
        self._size_2 = (0, 0)
        self._within = False  # a word has begun, of more than white space
        file.write(b"file\tline\tcharacter\tbyte\tword\ttokens\tsurprisal_bits\tcorrected_bits\n")

    def __call__(self, portion: Portion, covered_N3: np.ndarray) -> None:
        if portion.document != self._place.document:
            self.finish()
            self._place.enter(portion.document)
        for token, log_prob, ended, (bytes_, characters) in zip(
            portion.tokens_N.tolist(),
            portion.log_probs_N.tolist(),
            portion.extra_NX[:, 1].tolist(),
            covered_N3[:, :2].astype(np.int64).tolist(),
            strict=True,
        ):
            surface = self._surfaces[token]
            if self._within and (self._is_word or _ends_word(surface)):
                self._correction += ended
                self._write()
                self._correction = -ended
            self._tokens.append(token)
            self._nats -= log_prob
            self._size_2 = (self._size_2[0] + bytes_, self._size_2[1] + characters)
            self._within = self._is_word or not surface.decode(errors="replace").isspace()
            if token in (self._newline_id, self._end_id):
                self._write()

    def finish(self) -> None:
        """Write the last word."""
        if self._tokens:
            self._write()

    def _write(self) -> None:
        place, last = self._place, self._tokens[-1]
        if last in (self._newline_id, self._end_id):
            word = self._pieces[last]
        else:
            spelled = b"".join(map(self._surfaces.__getitem__, self._tokens))
            word = escaped(spelled.decode(errors="replace").strip())
        bits, corrected = self._nats / LN2, (self._nats + self._correction) / LN2
        self._file.write(
            f"{self._names[place.document]}\t{place.line}\t{place.character}\t{place.byte}\t{word}\t"
            f"{len(self._tokens)}\t{bits:.9g}\t{corrected:.9g}\n".encode()
        )
        place.move(self._size_2, newline=last == self._newline_id)
        self._tokens, self._size_2 = [], (0, 0)
        self._nats = self._correction = 0.0
        self._within = False


class PerLine:
    """A table with a row for every line, numbered from 1 through all documents.

    A line has its own newline; the last line of a document has the end-of-document token too.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._file = file
        self._newline_id, self._end_id = tokenizer.newline_id, tokenizer.end_id
        self._number, self._document = 1, 0
        self._tokens, self._nats = 0, 0.0
        self._complete = False  # a newline has come, and only the document's end may still follow
        file.write(b"line\ttokens\tnats\n")

    def __call__(self, portion: Portion, covered_N3: np.ndarray) -> None:
        if portion.document != self._document:
            self._document = portion.document
            self._close()
        # A foreign model may end lines and documents alike; but a line's end has a byte.
        is_end_N = (portion.tokens_N == self._end_id) & (covered_N3[:, 0] == 0)
        is_newline_N = (portion.tokens_N == self._newline_id) & ~is_end_N
        starts_N = np.flatnonzero(is_newline_N[:-1]) + 1
        starts_N = np.concatenate(([0], starts_N))
        nats_N = -np.add.reduceat(portion.log_probs_N, starts_N)
        sizes_N = np.diff(starts_N, append=len(portion.tokens_N))
        for start, size, nats in zip(starts_N, sizes_N.tolist(), nats_N.tolist(), strict=True):
            if self._complete and not is_end_N[start]:
                self._close()
            self._tokens += size
            self._nats += nats
            self._complete = is_newline_N[start + size - 1]

    def finish(self) -> None:
        """Write the last line."""
        self._close()

    def _close(self) -> None:
        if self._tokens:
            self._file.write(f"{self._number}\t{self._tokens}\t{self._nats:.9g}\n".encode())
            self._number += 1
        self._tokens, self._nats, self._complete = 0, 0.0, False
