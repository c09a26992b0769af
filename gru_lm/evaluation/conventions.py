"""Reporting conventions of SRILM, KenLM's `query` and lm-evaluation-harness.

Pure functions from sums over a text to the figures of each tool, in the tool's own output format. Knows
no model, files or tokens; the caller defines words and lines. Invariant: figures are ratios of sums, so
texts are combined by adding their sums, never their figures.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, NamedTuple

LN10 = math.log(10)
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class WordSums:
    """Sums over a text scored word by word; `a + b` combines two texts.

    logprob: log10 p of all words and sentence ends. oov_logprob: the share of out-of-vocabulary words in
    it. words: all words, including out-of-vocabulary words, excluding sentence ends. sentences: scored
    sentence ends. zeroprobs: known words of probability 0, which logprob excludes.
    """

    logprob: float = 0.0
    oov_logprob: float = 0.0
    words: int = 0
    sentences: int = 0
    oovs: int = 0
    zeroprobs: int = 0

    def __add__(self, other: WordSums) -> WordSums:
        return WordSums(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


def sums_of_tokens(
    *, nats: float, unknown_nats: float, tokens: int, unknown_tokens: int, sentences: int
) -> WordSums:
    """The sums of a text under a word model, where `sentences` of the `tokens` are ends of lines.

    Unknown tokens are the out-of-vocabulary words. A softmax gives no word probability 0.
    """
    return WordSums(
        logprob=-nats / LN10,
        oov_logprob=-unknown_nats / LN10,
        words=tokens - sentences,
        sentences=sentences,
        oovs=unknown_tokens,
    )


class SrilmFigures(NamedTuple):
    """logprob is base 10 and excludes out-of-vocabulary words; None stands for "undefined"."""

    logprob: float
    ppl: float | None
    ppl1: float | None


def srilm(sums: WordSums) -> SrilmFigures:
    """Figures of `ngram -ppl` with a closed vocabulary, which excludes words without a probability.

    SRILM ignores blank lines (File::getline skips them); to reproduce its figures, exclude them from the
    sums.
    """
    logprob = sums.logprob - sums.oov_logprob
    known = sums.words - sums.oovs - sums.zeroprobs
    return SrilmFigures(
        logprob,
        _power(logprob, known + sums.sentences) if known + sums.sentences > 0 else None,
        _power(logprob, known) if known > 0 else None,
    )


def format_srilm(name: str, sums: WordSums) -> str:
    """The last two lines of the output of `ngram -ppl NAME`.

    SRILM: lm/src/ngram.cc prints the name, lm/src/TextStats.cc (1.10, 2016) the rest, with 7 digits
    (LogP_Precision, lm/src/Prob.cc); TextStats.cc 1.4 (2009) printed 6.
    """
    counts = f"{sums.sentences} sentences, {sums.words} words, {sums.oovs} OOVs"
    lines = [f"file {name}: {counts}"]
    if sums.words + sums.sentences > 0:
        logprob, ppl, ppl1 = srilm(sums)
        lines.append(
            f"{sums.zeroprobs} zeroprobs, logprob= {logprob:.7g}"
            f" ppl= {'undefined' if ppl is None else format(ppl, '.7g')}"
            f" ppl1= {'undefined' if ppl1 is None else format(ppl1, '.7g')}"
        )
    return "\n".join(lines)


class KenlmFigures(NamedTuple):
    """NaN where the denominator is 0; tokens include sentence ends."""

    including_oovs: float
    excluding_oovs: float
    oovs: int
    tokens: int


def kenlm_query(sums: WordSums) -> KenlmFigures:
    """Figures of the summary of KenLM's `query`."""
    tokens = sums.words + sums.sentences
    return KenlmFigures(
        _power(sums.logprob, tokens),
        _power(sums.logprob - sums.oov_logprob, tokens - sums.oovs),
        sums.oovs,
        tokens,
    )


def plain(figures: SrilmFigures | KenlmFigures | LmEvalFigures) -> dict[str, Any]:
    """The figures by name, for JSON; None where not finite."""
    values = figures._asdict().items()
    return {name: value if math.isfinite(value or 0) else None for name, value in values}


def format_kenlm(sums: WordSums) -> str:
    """The four lines of `query -v summary`.

    KenLM 0.3.0: lm/ngram_query.hh; numbers in their shortest exact form (util/float_to_string.cc).
    """
    figures = kenlm_query(sums)
    return (
        f"Perplexity including OOVs:\t{_shortest(figures.including_oovs)}\n"
        f"Perplexity excluding OOVs:\t{_shortest(figures.excluding_oovs)}\n"
        f"OOVs:\t{figures.oovs}\n"
        f"Tokens:\t{figures.tokens}"
    )


class LmEvalFigures(NamedTuple):
    """Figures in the order of the lm-evaluation-harness table."""

    bits_per_byte: float
    byte_perplexity: float
    word_perplexity: float


def lm_eval(*, nats: float, words: int, bytes: int) -> LmEvalFigures:
    """Metrics of an lm-evaluation-harness task of type loglikelihood_rolling.

    Version 0.4.13: lm_eval/api/metrics.py. `words` is the sum of SplitWords counts over documents.
    """
    return LmEvalFigures(
        nats / bytes / math.log(2) if bytes else math.nan,
        _exp(nats, bytes),
        _exp(nats, words),
    )


class SplitWords:
    r"""Computes len(re.split(r"\s+", text)) for one document read in pieces.

    This is the number of whitespace runs plus one: leading whitespace, a final newline and an empty text
    each add an empty word.

    >>> words = SplitWords()
    >>> for piece in (" to b", "e\n", "\n"):
    ...     words.add(piece)
    >>> words.count, len(re.split(r"\s+", " to be\n\n"))
    (4, 4)
    """

    def __init__(self) -> None:
        self.count = 1
        self._in_space = False

    def add(self, piece: str) -> None:
        """Add the next piece of the text."""
        if piece:
            self.count += len(_SPACES.findall(piece)) - (self._in_space and piece[0].isspace())
            self._in_space = piece[-1].isspace()


def format_lm_eval(task: str, figures: LmEvalFigures, *, version: float = 1) -> str:
    """The table printed by lm-evaluation-harness for one zero-shot task.

    Version 0.4.13: make_table in lm_eval/utils.py rounds to four places; the table writer then drops
    trailing zeros common to the whole column.
    """
    rounded = [f"{value:.4f}" for value in figures]
    digits = max(len(text.partition(".")[2].rstrip("0")) for text in rounded)
    values = [_written(float(text), digits) for text in rounded]
    rows = [
        [*start, "none", "0", metric, "↓", value, "±", "N/A"]
        for start, metric, value in zip(
            ([task.replace("|", r"\|"), f"{version:g}"], ["", ""], ["", ""]),
            LmEvalFigures._fields,
            values,
            strict=True,
        )
    ]
    heads = ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"]
    widths = [max(3, *map(len, column)) for column in zip(heads, *rows, strict=True)]
    numbers = (False, True, False, True, False, False, True, False, False)
    rule = ["-" * (w - right) + ":" * right for w, right in zip(widths, numbers, strict=True)]
    aligned = [
        ">" if number or head == "Stderr" else "<"
        for number, head in zip(numbers, heads, strict=True)
    ]
    lines = [[f"{head:^{w}}" for head, w in zip(heads, widths, strict=True)], rule]
    for row in rows:
        cells = zip(row, aligned, widths, strict=True)
        lines.append([f"{cell:{side}{w}}" for cell, side, w in cells])
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)


def _power(logprob: float, count: int) -> float:
    """Perplexity from a log10 probability; NaN for a count of 0, as in C."""
    if not count:
        return math.nan
    try:
        return float(10.0 ** -(logprob / count))
    except OverflowError:
        return math.inf


def _exp(nats: float, count: int) -> float:
    if not count:
        return math.nan
    try:
        return math.exp(nats / count)
    except OverflowError:
        return math.inf


def _shortest(value: float) -> str:
    """The shortest decimal that parses to `value`; with an exponent only from 1e21 on."""
    if not math.isfinite(value):
        return "inf" if value > 0 else "NaN"
    if value >= 1e21:
        return repr(value).replace("e+", "e")
    return f"{Decimal(repr(value)):f}".removesuffix(".0")


def _written(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "Infinity" if value > 0 else "NaN"
    return f"{value:.{digits}f}"
