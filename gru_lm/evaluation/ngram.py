"""An n-gram model beside a model of words: a baseline row, and a partner. Estimates nothing.

Knows words and a word model's tokens; no text files and no neural model. Invariant: a line starts at <s>
and ends, where it has its newline, with </s>, so its total is what KenLM's `query` gives.

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
LEAST_OVERLAP = 0.5  # of the model's words that occur in a text


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    r"""The lines of a document that comes in pieces, with their ends, which the last may lack.

    >>> list(lines_of(["a b", " c\n\nd"]))
    ['a b c\n', '\n', 'd']
    """
    waiting: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        waiting.append(first)
        for part in others:
            yield "".join([*waiting, "\n"])
            waiting = [part]
    if any(waiting):
        yield "".join(waiting)


class LineScores(NamedTuple):
    """ln p of every word of a line and then, if it ends, of </s>; which are out of vocabulary."""

    log_probs_N: Floats
    unknown_N: npt.NDArray[np.bool_]


def scores(ngram: Ngram, lines: Iterable[str]) -> Iterator[LineScores]:
    """Score each line from <s> on, to </s> where it has its newline.

    Words are what stands between white space of ASCII.
    """
    for line in lines:
        # A C string ends at a NUL; with it in place the word would be another one.
        words, ends = line.removesuffix("\n").replace("\0", "\ufffd"), line.endswith("\n")
        found = list(ngram.model.full_scores(words, eos=ends))
        yield LineScores(
            np.array([log10 for log10, _, _ in found], np.float64) * LN10,
            np.array([unknown for _, _, unknown in found], np.bool_),
        )


def word_sums(ngram: Ngram, lines: Iterable[str]) -> WordSums:
    """The sums of a text's lines, with their ends, for conventions.kenlm_query and the like."""
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
    """The n-gram model's own row on a text, by KenLM's conventions.

    `text` are the counts of the word model it stands beside. Bits per byte have unknown words spelled
    as that model's have: None unless the `same_unknown` words are unknown to both.
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
    """For each token of a word model the word that kenlm gets; None for the end of a document.

    The end of a line is </s>. A word that the model does not know is <unk>, whatever it was: both
    models then speak of the same event. A word that only the n-grams lack is unknown to them alone.
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
    """ln p of a word model's tokens under the n-grams, as they are scored, in text order.

    Lines start at <s>, blank ones too; a document starts a line. The end-of-document token is no
    event of an n-gram model: it is the neural model's alone. Raises UsageError for other tokenizers.
    """

    def __init__(self, ngram: Ngram, tokenizer: Tokenizer) -> None:
        if tokenizer.kind != "word":
            raise UsageError(
                f"n-grams of words do not go with a model of {tokenizer.kind} tokens",
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
        """The tokens of a portion [N], their ln p by the neural model, and by the n-grams."""
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
        """ln p by the n-grams with that of <unk> shared by all words that they lack.

        KenLM gives each of them the whole of it, so that more than 1 is given out: in a mixture that
        would be gain for nothing.
        """
        sharing = self.lacking() + (self.unknown_id is not None)
        shared_V = self._is_event_V & ~self._known_V
        less_N: Floats = ngram_N - shared_V[tokens_N] * math.log(max(1, sharing))
        return less_N

    def lacking(self) -> int:
        """How many words of the model the n-grams lack."""
        lacking_V = self._is_event_V & ~self._known_V
        return int(lacking_V.sum()) - (self.unknown_id is not None and lacking_V[self.unknown_id])

    def unknown_tokens(self) -> int:
        """How many tokens so far were out of the n-grams' vocabulary, <unk> among them."""
        return int(self.counts_V[~self._known_V].sum())  # of events

    def check_overlap(self) -> None:
        """Raise InputError if the n-grams lack most of the known words that occurred so far."""
        occurred_V = self.counts_V > 0
        for token in (self.unknown_id, self._newline_id):
            if token is not None:
                occurred_V[token] = False
        occurred, shared = int(occurred_V.sum()), int((occurred_V & self._known_V).sum())
        if shared < LEAST_OVERLAP * occurred:
            raise InputError(
                f"{self.ngram.name}: another vocabulary than the model's",
                why=f"of {occurred:,} words of this text that the model knows, it has {shared:,}",
                hint="estimate it on the model's training text, split into words in the same way",
            )


class Pairs:
    """A table for `measure` that keeps both sides' ln p of every token, to tune the weight on."""

    def __init__(self, scores: TokenScores) -> None:
        self._scores = scores
        self._found: list[tuple[Floats, Floats]] = []

    def __call__(self, portion: Portion, _: Covered) -> None:
        tokens_N, model_N, ngram_N = self._scores(portion)
        self._found.append((model_N, self._scores.shared(tokens_N, ngram_N)))

    def arrays(self) -> tuple[Floats, Floats]:
        """ln p of all tokens so far [N], by the neural model and by the n-grams."""
        empty = (np.empty(0), np.empty(0))
        model, ngram = zip(empty, *self._found, strict=True)
        return np.concatenate(model), np.concatenate(ngram)


class Mixture:
    """A table for `measure` that sums what the two models give together, in constant memory."""

    def __init__(self, scores: TokenScores, *, weight: float) -> None:
        self._scores = scores
        self._weight = weight
        self.counts = Counts()

    def __call__(self, portion: Portion, _: Covered) -> None:
        tokens_N, model_N, ngram_N = self._scores(portion)
        if self._weight < 1:  # at 1 it is KenLM's own figure
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
    """ln((1 − w) a + w b), token by token; exactly a at weight 0, b at weight 1."""
    if weight in (0, 1):
        return ln_b_N if weight else ln_a_N
    mixed_N: Floats = np.logaddexp(ln_a_N + math.log1p(-weight), ln_b_N + math.log(weight))
    return mixed_N


def em_step(ln_a_N: Floats, ln_b_N: Floats, weight: float) -> float:
    """The mean probability that b had drawn the token: it never lowers the likelihood."""
    odds = math.log(weight) - math.log1p(-weight)
    return float((0.5 + 0.5 * np.tanh((odds + ln_b_N - ln_a_N) / 2)).mean())


def tune_weight(ln_a_N: Floats, ln_b_N: Floats) -> float:
    """The weight of b that makes held-out tokens likeliest, to about 1e-6, by EM.

    Jelinek and Mercer 1980. The likelihood is concave in the weight, so the start does not matter.
    ln_a_N must be finite. Raises InputError without tokens.
    """
    if not len(ln_a_N):
        raise InputError("no token to tune the n-grams' weight on", hint="name a longer --valid")
    weight = 0.5
    for _ in range(1000):
        before, weight = weight, em_step(ln_a_N, ln_b_N, weight)
        if abs(weight - before) < 1e-8 or weight in (0, 1):
            break
    return weight
