"""N-gram models as a baseline for a word model, and interpolated with it. Estimates no n-grams.

Knows words and the tokens of a word model, but no text files and no neural model. Invariant: a line
starts at <s> and, if it ends in a newline, ends with </s>, so its total equals that of KenLM's `query`.

Shapes: N tokens, V vocabulary of the word model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation.arpa import Ngram
from gru_lm.evaluation.conventions import LN10, WordSums, kenlm_query, plain
from gru_lm.evaluation.metrics import Counts

if TYPE_CHECKING:
    from gru_lm.evaluation.scoring import Portion
    from gru_lm.evaluation.texts import Covered
    from gru_lm.text.tokenizer import Tokenizer

Floats = npt.NDArray[np.float64]

UNKNOWN, END = "<unk>", "</s>"
LEAST_OVERLAP = 0.5  # share of the model's words in a text that the n-grams must know


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    r"""The lines of a document read in pieces, with their newlines, which the last line may lack.

    >>> list(lines_of(["a b", " c\n\nd"]))
    ['a b c\n', '\n', 'd']
    """
    pending: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        pending.append(first)
        for part in others:
            yield "".join([*pending, "\n"])
            pending = [part]
    if any(pending):
        yield "".join(pending)


class LineScores(NamedTuple):
    """ln p of the words of a line and of </s> if it has a newline; and which are out of vocabulary."""

    log_probs_N: Floats
    unknown_N: npt.NDArray[np.bool_]


def scores(ngram: Ngram, lines: Iterable[str]) -> Iterator[LineScores]:
    """Score each line from <s>, with </s> if it ends in a newline.

    Words are separated by ASCII whitespace.
    """
    for line in lines:
        # A C string ends at a NUL, which would cut the word short.
        words, ends = line.removesuffix("\n").replace("\0", "\ufffd"), line.endswith("\n")
        scored = list(ngram.model.full_scores(words, eos=ends))
        yield LineScores(
            np.array([log10 for log10, _, _ in scored], np.float64) * LN10,
            np.array([unknown for _, _, unknown in scored], np.bool_),
        )


def word_sums(ngram: Ngram, lines: Iterable[str]) -> WordSums:
    """Sums over the lines of a text, including sentence ends, as input to `conventions`."""
    sums = WordSums()
    kept, lines = itertools.tee(lines)
    for line, (log_probs_N, unknown_N) in zip(kept, scores(ngram, lines), strict=True):
        ends = line.endswith("\n")
        sums += WordSums(
            logprob=float(log_probs_N.sum()) / LN10,
            oov_logprob=float(log_probs_N[unknown_N].sum()) / LN10,
            words=len(log_probs_N) - ends,
            sentences=int(ends),
            oovs=int(unknown_N.sum()),
        )
    return sums


def baseline(
    ngram: Ngram, lines: Iterable[str], *, text: Counts, same_unknown: bool
) -> dict[str, Any]:
    """The row of the n-gram model alone, by KenLM's conventions.

    `text`: the counts of the word model on the same text. Bits per byte include the same cost of
    spelling unknown words, and are None unless the `same_unknown` words are unknown to both models.
    """
    sums = word_sums(ngram, lines)
    figures = plain(kenlm_query(sums))
    alike = text.bytes and same_unknown and sums.oovs == text.unknown_tokens
    nats = text.spelling_nats - sums.logprob * LN10
    return {
        "name": f"{ngram.name} ({ngram.model.order}-gram)",
        "bits_per_byte": nats / math.log(2) / text.bytes if alike else None,
        "perplexity": figures["including_oovs"],
        "perplexity_excluding_oovs": figures["excluding_oovs"],
        "oovs": figures["oovs"],
        "tokens": figures["tokens"],
    }


def words_of(tokenizer: Tokenizer) -> list[str | None]:
    """Map each token of a word model to a word for kenlm; None for the end-of-document token.

    The end-of-line token maps to </s>, the unknown token to <unk>, so that both models predict the same
    events. A word that only the n-grams lack is unknown to them only.
    """
    words: list[str | None] = []
    for token in range(tokenizer.vocab_size):
        surface = tokenizer.surface(token)
        words.append(surface.decode(errors="replace").removeprefix(" ") if surface else None)
    words[tokenizer.newline_id] = END
    if tokenizer.unknown_id is not None:
        words[tokenizer.unknown_id] = UNKNOWN
    return words


class TokenScores:
    """Scores the tokens of a word model by the n-grams, portion by portion in text order.

    Every line starts at <s>, including blank lines and the first of a document. The n-grams have no
    end-of-document event; this token keeps the probability of the neural model. Raises UsageError if the
    tokenizer is not of kind word.
    """

    def __init__(self, ngram: Ngram, tokenizer: Tokenizer) -> None:
        if tokenizer.kind != "word":
            raise UsageError(
                f"n-grams of words cannot be combined with {tokenizer.kind} tokens",
                hint="train the model with --tokenizer word",
            )
        self.ngram = ngram
        self.counts_V = np.zeros(tokenizer.vocab_size, np.int64)
        self.unknown_id = tokenizer.unknown_id
        self._newline_id = tokenizer.newline_id
        self._words = words_of(tokenizer)
        self._is_event_V = np.array([word is not None for word in self._words])
        self._known_V = np.array([word is not None and word in ngram.model for word in self._words])
        self._document = 0
        self._state, self._next = ngram.state(), ngram.state()
        ngram.model.BeginSentenceWrite(self._state)

    def __call__(self, portion: Portion) -> tuple[npt.NDArray[np.int32], Floats, Floats]:
        """The tokens of a portion [N], and their ln p under the neural model and under the n-grams."""
        model, words = self.ngram.model, self._words
        if portion.document != self._document:
            self._document = portion.document
            model.BeginSentenceWrite(self._state)
        events_N = self._is_event_V[portion.tokens_N]
        tokens_n = portion.tokens_N[events_N]
        np.add.at(self.counts_V, tokens_n, 1)
        log10: list[float] = []
        state, following = self._state, self._next
        for token in tokens_n.tolist():
            log10.append(model.BaseScore(state, words[token], following))
            state, following = following, state
            if token == self._newline_id:
                model.BeginSentenceWrite(state)
        self._state, self._next = state, following
        ngram_N = portion.log_probs_N.copy()
        ngram_N[events_N] = np.array(log10, np.float64) * LN10
        return portion.tokens_N, portion.log_probs_N, ngram_N

    def shared(self, tokens_N: npt.NDArray[np.int32], ngram_N: Floats) -> Floats:
        """ln p under the n-grams, with the probability of <unk> divided among all words they lack.

        KenLM assigns all of it to each of these words, so probabilities would sum to more than 1 and the
        mixture would look better than it is.
        """
        sharing = self.lacking() + (self.unknown_id is not None)
        shared_V = self._is_event_V & ~self._known_V
        reduced_N: Floats = ngram_N - shared_V[tokens_N] * math.log(max(1, sharing))
        return reduced_N

    def lacking(self) -> int:
        """Number of words of the model that the n-grams lack."""
        lacking_V = self._is_event_V & ~self._known_V
        return int(lacking_V.sum()) - (self.unknown_id is not None and lacking_V[self.unknown_id])

    def unknown_tokens(self) -> int:
        """Number of tokens so far outside the n-grams' vocabulary, including <unk>."""
        return int(self.counts_V[~self._known_V].sum())  # of events

    def check_overlap(self) -> None:
        """Raise InputError if the n-grams lack most of the known words seen so far."""
        occurred_V = self.counts_V > 0
        for token in (self.unknown_id, self._newline_id):
            if token is not None:
                occurred_V[token] = False
        occurred, shared = int(occurred_V.sum()), int((occurred_V & self._known_V).sum())
        if shared < LEAST_OVERLAP * occurred:
            raise InputError(
                f"{self.ngram.name}: its vocabulary does not match the model's",
                why=f"it has {shared:,} of the {occurred:,} words of this text known to the model",
                hint="estimate it on the model's training text, with the same word splitting",
            )


class Pairs:
    """A table for `measure` that keeps ln p of every token under both models, to tune the weight."""

    def __init__(self, scores: TokenScores) -> None:
        self._scores = scores
        self._kept: list[tuple[Floats, Floats]] = []

    def __call__(self, portion: Portion, _: Covered) -> None:
        tokens_N, model_N, ngram_N = self._scores(portion)
        self._kept.append((model_N, self._scores.shared(tokens_N, ngram_N)))

    def arrays(self) -> tuple[Floats, Floats]:
        """ln p of all tokens so far [N], under the neural model and under the n-grams."""
        empty = (np.empty(0), np.empty(0))
        model, ngram = zip(empty, *self._kept, strict=True)
        return np.concatenate(model), np.concatenate(ngram)


class Mixture:
    """A table for `measure` that sums log-probabilities of the mixture, in constant memory."""

    def __init__(self, scores: TokenScores, *, weight: float) -> None:
        self._scores = scores
        self._weight = weight
        self.counts = Counts()

    def __call__(self, portion: Portion, _: Covered) -> None:
        tokens_N, model_N, ngram_N = self._scores(portion)
        if self._weight < 1:  # at 1 the result is KenLM's own figure
            ngram_N = self._scores.shared(tokens_N, ngram_N)
        nats_N = -interpolate(model_N, ngram_N, weight=self._weight)
        unknown_N = nats_N[tokens_N == self._scores.unknown_id]
        self.counts += Counts(
            tokens=len(nats_N),
            nats=float(nats_N.sum()),
            unknown_tokens=len(unknown_N),
            unknown_nats=float(unknown_N.sum()),
        )


def interpolate(ln_a_N: Floats, ln_b_N: Floats, *, weight: float) -> Floats:
    """ln((1 − w) a + w b) for each token; exactly a at weight 0, b at weight 1."""
    if weight in (0, 1):
        return ln_b_N if weight else ln_a_N
    mixed_N: Floats = np.logaddexp(ln_a_N + math.log1p(-weight), ln_b_N + math.log(weight))
    return mixed_N


def em_step(ln_a_N: Floats, ln_b_N: Floats, weight: float) -> float:
    """The updated weight: mean posterior probability of b. Never lowers the likelihood."""
    odds = math.log(weight) - math.log1p(-weight)
    return float((0.5 + 0.5 * np.tanh((odds + ln_b_N - ln_a_N) / 2)).mean())


def tune_weight(ln_a_N: Floats, ln_b_N: Floats) -> float:
    """The weight of b that maximises the likelihood of held-out tokens, to about 1e-6, by EM.

    Jelinek and Mercer 1980. The likelihood is concave in the weight, so any start converges to the
    maximum. ln_a_N must be finite. Raises InputError if there are no tokens.
    """
    if not len(ln_a_N):
        raise InputError("no tokens to tune the n-gram weight on", hint="use a longer --valid")
    weight = 0.5
    for _ in range(1000):
        before, weight = weight, em_step(ln_a_N, ln_b_N, weight)
        if abs(weight - before) < 1e-8 or weight in (0, 1):
            break
    return weight
