"""Statistics collected in the same pass as the basic counts: each class is a table for `measure`.

Depends on tokens and the text they cover, not on the model. Invariant: memory is a few numbers per block
of text, plus the first tokens kept for display.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gru_lm.evaluation.conventions import (
    SplitWords,
    WordSums,
    format_kenlm,
    format_lm_eval,
    format_srilm,
    kenlm_query,
    lm_eval,
    plain,
    srilm,
    sums_of_tokens,
)
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.scoring import Portion
from gru_lm.evaluation.statistics import Blocks, Estimate, ratio_interval
from gru_lm.evaluation.texts import Covered
from gru_lm.text.documents import Document, readings
from gru_lm.text.tokenizer import Tokenizer

MOST_SHOWN = 20_000  # tokens shown on a page


class ByBlock:
    """Nats including charges (spelling.py), bytes and tokens per block of text."""

    def __init__(self) -> None:
        self._blocks = Blocks(3)

    def __call__(self, portion: Portion, covered: Covered) -> None:
        nats_N = covered.spelling_N.copy()
        is_token_N = np.arange(len(nats_N)) < len(portion.tokens_N)
        nats_N[is_token_N] -= portion.log_probs_N
        values_N3 = np.stack((nats_N, covered.sizes_N2[:, 0], is_token_N), 1)
        self._blocks.add(portion.document, values_N3)

    def sums(self) -> np.ndarray:
        """Nats, bytes and tokens of each block, [K, 3]."""
        return self._blocks.sums()

    def interval(self) -> Estimate:
        """Bits per byte with its confidence interval."""
        nats_K, bytes_K, _ = self.sums().T
        return ratio_interval(nats_K / math.log(2), bytes_K)


class TokenCounts:
    """Number of times each token of the vocabulary was scored."""

    def __init__(self, vocab_size: int) -> None:
        self.counts_V = np.zeros(vocab_size, np.int64)

    def __call__(self, portion: Portion, _: Covered) -> None:
        self.counts_V += np.bincount(portion.tokens_N, minlength=len(self.counts_V))


class Conventions:
    """Sums for the figures of other tools.

    End-of-document tokens are excluded, because the other tools have none. `sentence_end_id`: the token
    that ends a sentence, a line (the default) or a record.
    """

    def __init__(self, tokenizer: Tokenizer, sentence_end_id: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._sentence_end_id = tokenizer.newline_id if sentence_end_id is None else sentence_end_id
        self._all, self._blank = Counts(), Counts()
        self._sentences = self._blank_lines = 0
        self._document, self._last = 0, self._sentence_end_id

    def __call__(self, portion: Portion, covered: Covered) -> None:
        newline_id, end_id = self._sentence_end_id, self._tokenizer.end_id
        if portion.document != self._document:
            self._document, self._last = portion.document, newline_id
        # A foreign model may use one piece for both ends; only the end of a line covers a byte.
        sizes_N = covered.sizes_N2[: len(portion.tokens_N), 0]
        kept_N = (portion.tokens_N != end_id) | (sizes_N > 0)
        tokens_N, nats_N = portion.tokens_N[kept_N], -portion.log_probs_N[kept_N]
        self._all += Counts(spelling_nats=float(covered.spelling_N.sum()))
        if not len(tokens_N):
            return
        is_newline_N = tokens_N == newline_id
        follows_N = np.concatenate(([self._last == newline_id], is_newline_N[:-1]))
        self._last = int(tokens_N[-1])
        is_unknown_N = tokens_N == self._tokenizer.unknown_id
        self._sentences += int(is_newline_N.sum())
        self._all += Counts(
            tokens=len(tokens_N),
            nats=float(nats_N.sum()),
            unknown_tokens=int(is_unknown_N.sum()),
            unknown_nats=float(nats_N[is_unknown_N].sum()),
        )
        blank_N = is_newline_N & follows_N
        self._blank_lines += int(blank_N.sum())
        self._blank += Counts(tokens=int(blank_N.sum()), nats=float(nats_N[blank_N].sum()))

    def figures(
        self, convention: str, *, name: str, words: list[SplitWords], size: int
    ) -> dict[str, Any]:
        """The figures of a convention, with the other tool's output format as `text`.

        `words`: word counts per document. `size`: total bytes.
        """
        if convention == "lm-eval":
            counted = sum(each.count for each in words)
            # ln p of the whole text, as in integrations/lm_eval.py.
            nats = self._all.nats + self._all.spelling_nats
            by_byte = lm_eval(nats=nats, words=counted, bytes=size)
            return plain(by_byte) | {"words": counted, "text": format_lm_eval(name, by_byte)}
        if convention == "srilm":  # SRILM skips blank lines
            sums = self._sums(blank=False)
            return plain(srilm(sums)) | {"text": format_srilm(name, sums)}
        sums = self._sums(blank=True)
        return plain(kenlm_query(sums)) | {"text": format_kenlm(sums)}

    def _sums(self, *, blank: bool) -> WordSums:
        return sums_of_tokens(
            nats=self._all.nats - (0 if blank else self._blank.nats),
            unknown_nats=self._all.unknown_nats,
            tokens=self._all.tokens - (0 if blank else self._blank.tokens),
            unknown_tokens=self._all.unknown_tokens,
            sentences=self._sentences - (0 if blank else self._blank_lines),
        )


def split_words(documents: Sequence[Document]) -> list[SplitWords]:
    """The words of each document as lm-evaluation-harness counts them."""
    counters = []
    for pieces in readings(documents):
        counters.append(SplitWords())
        for piece in pieces:
            counters[-1].add(piece)
    return counters


class Shown:
    """The first tokens of the text with their bits, charges included, for display."""

    def __init__(self, tokenizer: Tokenizer, *, is_list: bool = False) -> None:
        """`is_list`: the text is a list, whose records end with end_id and are shown as lines."""
        self._tokenizer = tokenizer
        self._is_list = is_list
        self.tokens: list[tuple[str, float, bool]] = []  # text, bits, whether unknown

    def __call__(self, portion: Portion, covered: Covered) -> None:
        room = MOST_SHOWN - len(self.tokens)
        tokens = portion.tokens_N[:room].tolist()
        nats = (covered.spelling_N[: len(tokens)] - portion.log_probs_N[:room]).tolist()
        surfaces = map(self._tokenizer.surface, tokens)
        texts = surfaces if covered.texts is None else covered.texts[: len(tokens)]
        for token, cost, text in zip(tokens, nats, texts, strict=True):
            unknown = token == self._tokenizer.unknown_id
            ends = self._is_list and token == self._tokenizer.end_id
            self.tokens.append(("\n" if ends else _shown(text), cost / math.log(2), unknown))


def _shown(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in text)
