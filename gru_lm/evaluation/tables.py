"""Tables of surprisal: one row per token, word or line, written as portions are scored.

Surprisal is in bits per token and word, in nats per line. Independent of models and file formats.
Invariants: the rows of a table sum to the total of the text, and `spelling_bits` to its charges
(spelling.py); the result does not depend on how the text was split into portions.

Shapes: N tokens, V vocabulary, n tokens of a slice.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gru_lm.evaluation.rows import Rows, Value
from gru_lm.evaluation.scoring import OfDistribution, Portion
from gru_lm.evaluation.texts import Covered
from gru_lm.text.documents import Document, beginning
from gru_lm.text.tokenizer import Tokenizer, escaped
from gru_lm.text.tokenizer_encoders import white_space_before

LN2 = math.log(2)

# Token, ln p, surprisal of a word end, bytes and characters, charge.
_Scored = tuple[int, float, float, list[int], float]


def details(tokenizer: Tokenizer) -> OfDistribution:
    """Return the function that computes the columns of PerToken and PerWord: [n, 2], in nats.

    The entropy of the distribution, and the surprisal of a word end: of the set of all tokens that begin
    with white space or end a line or text.
    """
    ends_word_V = torch.tensor(
        [_ends_word(tokenizer.surface(token)) for token in range(tokenizer.vocab_size)]
    )

    def of_distribution(log_probs_nV: Tensor) -> Tensor:
        probs_nV = log_probs_nV.exp()
        entropy_n = torch.special.entr(probs_nV).sum(1)
        if tokenizer.kind == "word":  # white space is not part of its tokens
            return torch.stack((entropy_n, torch.zeros_like(entropy_n)), 1)
        ended_n = probs_nV[:, ends_word_V.to(probs_nV.device)].double().sum(1).clamp(max=1.0)
        return torch.stack((entropy_n.double(), -ended_n.log()), 1)

    return of_distribution


def _ends_word(surface: bytes) -> bool:
    return not surface or surface.decode(errors="replace")[0].isspace()


def _texts(tokens: Sequence[int], covered: Covered, surfaces: Sequence[bytes]) -> Sequence[bytes]:
    """The text covered by each token."""
    if covered.texts is None:
        return [surfaces[token] for token in tokens]
    return covered.texts


def _word(text: bytes) -> str:
    """The text of an unknown token, escaped for a table."""
    return escaped(white_space_before(text)[1].decode(errors="replace"))


class Place:
    """Position of the next token in its file: line (from 1), character and byte (from 0)."""

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
    """One row per scored token; `index` counts from 0 across all documents.

    `character` and `byte` (in UTF-8) give the token's position in its file. A token for a
    continuation byte has the character position of the next character. The piece of an unknown token is
    the text it covers, without leading white space.
    """

    COLUMNS = (
        "index id piece surprisal_bits entropy_bits file line character byte unknown spelling_bits"
    )

    def __init__(
        self,
        file: BinaryIO,
        tokenizer: Tokenizer,
        documents: Sequence[Document],
        *,
        form: str = ".tsv",
        place: Place | None = None,
    ) -> None:
        """`place` follows the tokens; by default it is that in the file."""
        self._rows = Rows(file, self.COLUMNS, form)
        self._pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self._newline_id, self._unknown_id = tokenizer.newline_id, tokenizer.unknown_id
        self._surfaces = [tokenizer.surface(token) for token in range(tokenizer.vocab_size)]
        self._names = [escaped(document.name) for document in documents]
        self._index = 0
        self._place = place or Place(documents)

    def __call__(self, portion: Portion, covered: Covered) -> None:
        place, name = self._place, self._names[portion.document]
        place.enter(portion.document)
        tokens = portion.tokens_N.tolist()
        if not tokens:
            return
        rows: list[tuple[Value, ...]] = []
        for token, log_prob, entropy, size_2, spelling, text in zip(
            tokens,
            portion.log_probs_N.tolist(),
            portion.extra_NX[:, 0].tolist(),
            covered.sizes_N2.tolist(),
            covered.spelling_N.tolist(),
            _texts(tokens, covered, self._surfaces),
            strict=True,
        ):
            unknown = token == self._unknown_id
            piece = _word(text) if unknown else self._pieces[token]
            surprisal, entropy_bits = log_prob / -LN2, entropy / LN2
            where = (name, place.line, place.character, place.byte)
            rows.append(
                (
                    *(self._index, token, piece, surprisal, entropy_bits, *where),
                    *(int(unknown), spelling / LN2),
                )
            )
            self._index += 1
            place.move(size_2, newline=token == self._newline_id)
        self._rows.write(rows)


class PerWord:
    """One row per word, end of line and end of document; call `finish` at the end.

    Words are separated by white space, as in the word count. A word's position is that of its first
    token, which may include the preceding space. `surprisal_bits` is the sum over its tokens; a
    token that spans several words counts towards the first. `corrected_bits` assigns the
    probability of a leading space to the preceding word, whose end it marks (Oh and Schuler 2024;
    Pimentel and Meister 2024): it subtracts the surprisal of a word end before the word and adds
    that after the word. Both columns have the same total. A text of white space only may have no
    tokens; its row has an empty word.
    """

    COLUMNS = (
        "file line character byte word tokens surprisal_bits corrected_bits unknown spelling_bits"
    )

    def __init__(
        self,
        file: BinaryIO,
        tokenizer: Tokenizer,
        documents: Sequence[Document],
        *,
        form: str = ".tsv",
        place: Place | None = None,
    ) -> None:
        """`place` as in PerToken."""
        V = tokenizer.vocab_size
        self._rows = Rows(file, self.COLUMNS, form)
        self._surfaces = [tokenizer.surface(token) for token in range(V)]
        self._ends_word = [_ends_word(surface) for surface in self._surfaces]
        self._pieces = [tokenizer.piece(token) for token in range(V)]
        self._line_ends = (tokenizer.newline_id, tokenizer.end_id)
        self._newline_id, self._unknown_id = tokenizer.newline_id, tokenizer.unknown_id
        self._names = [escaped(document.name) for document in documents]
        self._place = place or Place(documents)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[_Scored] = []  # tokens whose text ends inside a character
        self._text = ""  # decoded text of the held tokens
        self._correction = 0.0
        self._clear()

    def __call__(self, portion: Portion, covered: Covered) -> None:
        if portion.document != self._place.document:
            self.finish()
            self._place.enter(portion.document)
        tokens = portion.tokens_N.tolist()
        if not tokens:
            self._spelling = float(covered.spelling_N[0])
            self._size_2 = covered.sizes_N2[0].tolist()
            self._write("")
            return
        for scored, text in zip(
            zip(
                tokens,
                portion.log_probs_N.tolist(),
                portion.extra_NX[:, 1].tolist(),
                covered.sizes_N2.tolist(),
                covered.spelling_N.tolist(),
                strict=True,
            ),
            _texts(tokens, covered, self._surfaces),
            strict=True,
        ):
            self._held.append(scored)
            if scored[0] in self._line_ends:
                self._end_line()
                continue
            self._text += self._decoder.decode(text)
            if not self._decoder.getstate()[0]:
                self._take()

    def finish(self) -> None:
        """Write the last word."""
        self._text += self._decoder.decode(b"", final=True)
        self._take()
        if self._tokens or self._word:
            self._write_word()

    def _end_line(self) -> None:
        """Write the row of an end of line or document, the last of the held tokens."""
        *before, last = self._held
        self._held = before
        self._text += self._decoder.decode(b"", final=True)
        self._take()
        self._end_word(last)
        self._add(last)
        self._write(self._pieces[last[0]], newline=last[0] == self._newline_id)

    def _take(self) -> None:
        """Add the held tokens to their words."""
        held, text = self._held, self._text
        self._held, self._text = [], ""
        if text[:1].isspace():
            self._end_word(held[0])
        for scored in held:
            self._add(scored)
        for number, part in enumerate(text.split()):
            if number:
                self._write_word()
            self._word.append(part)
        if self._word and text[-1:].isspace():
            self._write_word()

    def _end_word(self, by: _Scored) -> None:
        """Write the current word, if any; `by` is the token that marks its end."""
        if not self._word:
            return
        ended: float = by[2] if self._ends_word[by[0]] else 0.0
        self._correction += ended
        self._write_word()
        self._correction = -ended

    def _add(self, scored: _Scored) -> None:
        token, log_prob, _, (bytes_, characters), spelling = scored
        self._tokens += 1
        self._nats -= log_prob
        self._spelling += spelling
        self._unknown |= token == self._unknown_id
        self._size_2 = [self._size_2[0] + bytes_, self._size_2[1] + characters]

    def _write_word(self) -> None:
        self._write(escaped("".join(self._word)))

    def _write(self, shown: str, *, newline: bool = False) -> None:
        place = self._place
        bits, corrected = self._nats / LN2, (self._nats + self._correction) / LN2
        self._rows.write(
            [
                (
                    *(self._names[place.document], place.line, place.character, place.byte),
                    *(shown, self._tokens, bits, corrected),
                    *(int(self._unknown), self._spelling / LN2),
                )
            ]
        )
        place.move(self._size_2, newline=newline)
        self._clear()

    def _clear(self) -> None:
        self._word: list[str] = []  # parts of the current word
        self._tokens, self._size_2, self._unknown = 0, [0, 0], False
        self._nats, self._correction, self._spelling = 0.0, 0.0, 0.0


class PerLine:
    """One row per line, numbered from 1 across all documents.

    A line includes its newline; the last line of a document also includes the end-of-document token.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, *, form: str = ".tsv") -> None:
        self._rows = Rows(file, "line tokens nats", form)
        self._newline_id, self._end_id = tokenizer.newline_id, tokenizer.end_id
        self._number, self._document = 1, 0
        self._tokens, self._nats = 0, 0.0
        self._complete = False  # after the newline; only the end of the document may follow

    def __call__(self, portion: Portion, covered: Covered) -> None:
        if not len(portion.tokens_N):
            return
        if portion.document != self._document:
            self._document = portion.document
            self._close()
        # A foreign model may use one piece for both ends; only the end of a line covers a byte.
        is_end_N = (portion.tokens_N == self._end_id) & (covered.sizes_N2[:, 0] == 0)
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
            self._rows.write([(self._number, self._tokens, self._nats)])
            self._number += 1
        self._tokens, self._nats, self._complete = 0, 0.0, False
