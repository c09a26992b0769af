"""An n-gram model in an ARPA file: a baseline row, and a partner for word models.

Read through the `kenlm` package, an optional extra that is imported here alone. Estimates nothing.
Knows words and a word model's tokens; no text files and no neural model. Invariants: a line starts
at <s> and ends with </s>, so its total is what KenLM's `query` gives; kenlm is native code that trusts
a file's header, so nothing reaches it whose header was not checked.

Shapes: N tokens, V vocabulary of the word model.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gru_lm.errors import EnvironmentProblem, InputError, UsageError
from gru_lm.evaluation.conventions import LN10, WordSums, kenlm_query
from gru_lm.evaluation.metrics import Counts
from gru_lm.text import files

if TYPE_CHECKING:
    from gru_lm.evaluation.scoring import Portion
    from gru_lm.text.tokenizer import Tokenizer

Floats = npt.NDArray[np.float64]

UNKNOWN, END = "<unk>", "</s>"
LEAST_OVERLAP = 0.5  # of the model's words that occur in a text
_BINARY = b"mmap lm http://kheafield.com/code"
_COUNT = re.compile(rb"ngram +\d+=\s*(\d+)\s*")
_LEAST_ENTRY = 4  # bytes: a probability, a tab, a word, a newline
_MOST_PACKED = 1000  # times smaller than its text a compressed file may be
_MAKE = "make it again, for example with KenLM's lmplz, or fetch it again"


@dataclass(frozen=True)
class Ngram:
    """A model in memory; `name` is its file's, as shown to a user."""

    name: str
    model: Any  # kenlm.Model
    state: type[Any]  # kenlm.State


def open_arpa(path: Path) -> Ngram:
    """The model in an ARPA file, which may be packed (.gz, .bz2, .xz).

    Raises EnvironmentProblem without kenlm or the memory, InputError for all that is wrong with the
    file. Where the file has no <unk>, kenlm says so on standard error and takes 1e-100.
    """
    try:
        import kenlm
    except ImportError as error:
        raise EnvironmentProblem(
            "n-grams need the package kenlm", why=str(error), hint="pip install 'gru-lm[ngram]'"
        ) from error
    name = files.shown(path)
    _check_head(name, path)
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return Ngram(name, kenlm.Model(os.fsencode(path), config), kenlm.State)
    except Exception as error:  # what C++ throws comes as one or another
        raise _refused(name, path, error) from error


def _check_head(name: str, path: Path) -> None:
    r"""Refuse what is no ARPA file, and a header that would make kenlm leave its memory."""
    with files.reading(name, path) as (raw, stream):
        head = stream.read(4096)
        if head.startswith(_BINARY):
            raise InputError(
                f"{name} is a KenLM binary", hint="name the ARPA file that it was built from"
            )
        files.judge(name, path, head, "utf-8")
        stream.seek(0)
        lines = enumerate(iter(partial(stream.readline, 1 << 16), b""), 1)
        passed = itertools.dropwhile(lambda line: not line[1].strip() or line[1][:1] == b"#", lines)
        number, line = next(passed, (1, b""))
        if line.rstrip(b"\r\n") != b"\\data\\":
            raise InputError(
                f"{name} is not an ARPA file",
                why=rf'line {number} is "{_shown(line)}" instead of "\data\"',
                hint="name an n-gram model in ARPA format, as lmplz and ngram-count write it",
            )
        room = os.fstat(raw.fileno()).st_size // _LEAST_ENTRY
        if path.suffix.lower() in files.PACKED:
            room *= _MOST_PACKED
        for number, line in passed:
            if not line.strip():
                return
            counted = _COUNT.fullmatch(line)
            if not counted or len(counted[1]) > 18 or int(counted[1]) > room:
                raise InputError(
                    f"{name}, line {number}: no count of n-grams that can be true",
                    why=_shown(line),
                    hint=_MAKE,
                )


def _shown(line: bytes) -> str:
    text = line.strip()[:120].decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _refused(name: str, path: Path, error: Exception) -> InputError | EnvironmentProblem:
    """What of "Cannot read model 'F' (where threw What because `X'. Why Byte: N)" helps a user."""
    said = str(error)
    if isinstance(error, MemoryError) or "ailed to allocate" in said:
        return EnvironmentProblem(
            f"{name}: there is not the memory to load it", hint="name a smaller, pruned model"
        )
    said = re.sub(r"^Cannot read model .*? \((?=\w+/\w+\.\w+:\d|End of file)", "", said)
    said = re.sub(r"^.*? threw [\w:]+(?: because `.*?')?\.\s+", "", said).removesuffix(")")
    if at := re.search(r"(?: at byte \d+)? Byte: (\d+)$", said):
        # A number is refused where it begins, anything else once it was read.
        offset = int(at[1]) - (not said.startswith("Could not parse"))
        with files.reading(name, path) as (_, stream):
            ends = itertools.accumulate(map(len, stream))
            line = 1 + sum(1 for _ in itertools.takewhile(lambda end: end <= offset, ends))
        said, name = said[: at.start()], f"{name}, line {line}"
    if said.startswith("End of file"):
        said = "the file ends too early"
    why = _shown(said.partition(".  ")[0].encode())
    return InputError(f"{name}: damaged, or not usable", why=why, hint=_MAKE)


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    r"""The lines of a document that comes in pieces, without their ends; the last may lack its own.

    >>> list(lines_of(["a b", " c\n\nd"]))
    ['a b c', '', 'd']
    """
    waiting: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        waiting.append(first)
        for part in others:
            yield "".join(waiting)
            waiting = [part]
    if any(waiting):
        yield "".join(waiting)


class LineScores(NamedTuple):
    """ln p of every word of a line and then of </s>, and which are out of vocabulary."""

    log_probs_N: Floats
    unknown_N: npt.NDArray[np.bool_]


def scores(ngram: Ngram, lines: Iterable[str]) -> Iterator[LineScores]:
    """Score each line from <s> to </s>; words are what stands between white space of ASCII."""
    for line in lines:
        # A C string ends at a NUL; with it in place the word would be another one.
        found = list(ngram.model.full_scores(line.replace("\0", "\ufffd")))
        yield LineScores(
            np.array([log10 for log10, _, _ in found]) * LN10,
            np.array([unknown for _, _, unknown in found]),
        )


def word_sums(ngram: Ngram, lines: Iterable[str]) -> WordSums:
    """The sums of a text, for conventions.kenlm_query and the like.

    The last line ends with </s> too; `query` leaves that out where the newline is missing.
    """
    sums = WordSums()
    for log_probs_N, unknown_N in scores(ngram, lines):
        sums += WordSums(
            logprob=float(log_probs_N.sum()) / LN10,
            oov_logprob=float(log_probs_N[unknown_N].sum()) / LN10,
            words=len(log_probs_N) - 1,
            sentences=1,
            oovs=int(unknown_N.sum()),
        )
    return sums


def baseline(ngram: Ngram, lines: Iterable[str], *, size: int) -> dict[str, Any]:
    """The n-gram model's own row on a text of `size` UTF-8 bytes, by KenLM's conventions."""
    sums = word_sums(ngram, lines)
    figures = kenlm_query(sums)
    return {
        "name": f"{ngram.name} ({ngram.model.order}-gram)",
        "bits_per_byte": -sums.logprob * math.log2(10) / size if size else None,
        "perplexity": figures.including_oovs,
        "perplexity_excluding_oovs": figures.excluding_oovs,
        "oovs": figures.oovs,
        "tokens": figures.tokens,
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
    event of an n-gram model and is left out on both sides. Raises UsageError for other tokenizers.
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
        kept_N = self._is_event_V[portion.tokens_N]
        tokens_N = portion.tokens_N[kept_N]
        np.add.at(self.counts_V, tokens_N, 1)
        log10: list[float] = []
        state, following = self._state, self._next
        for token in tokens_N.tolist():
            log10.append(model.BaseScore(state, words[token], following))
            state, following = following, state
            if token == self._newline_id:
                model.BeginSentenceWrite(state)
        self._state, self._next = state, following
        return tokens_N, portion.log_probs_N[kept_N], np.array(log10, np.float64) * LN10

    def unknown_tokens(self) -> int:
        """How many tokens so far were out of the n-grams' vocabulary, <unk> among them."""
        return int(self.counts_V[~self._known_V].sum())

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

    def __call__(self, portion: Portion, _: npt.NDArray[Any]) -> None:
        self._found.append(self._scores(portion)[1:])

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

    def __call__(self, portion: Portion, _: npt.NDArray[Any]) -> None:
        tokens_N, model_N, ngram_N = self._scores(portion)
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
