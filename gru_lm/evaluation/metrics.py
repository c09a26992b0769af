"""Counts of a text and its surprisal, and the metrics derived from them.

Every metric is a ratio of sums, so that counts of several files can be added; metrics cannot.
Independent of models, token meanings and files. Definitions: bits per byte and per character divide
by the UTF-8 bytes and the Unicode characters of the text, and include the charges of lossy
tokenizers (spelling.py); perplexities exclude them. Words are separated by white space; a line ends
at a newline or at the end of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gru_lm.text.tokenizer import Tokenizer

MOST_UNKNOWN = 0.005  # fraction of unknown tokens above which per-token metrics are misleading


@dataclass(frozen=True)
class Counts:
    """Sums over a text; `a + b` are the sums over both texts.

    >>> (Counts(tokens=3, nats=2.0) + Counts(tokens=1, nats=0.5)).figures()["nats_per_token"]
    0.625
    """

    tokens: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    lines: int = 0
    nats: float = 0.0
    unknown_tokens: int = 0
    unknown_nats: float = 0.0
    spelling_nats: float = 0.0  # charges of a lossy tokenizer (spelling.py); not included in `nats`
    records: int = 0  # of a list; their ends are counted as one byte and character each

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def unknown_rate(self) -> float | None:
        """Fraction of tokens that are unknown words."""
        return _ratio(self.unknown_tokens, self.tokens)

    def figures(self) -> dict[str, int | float | None]:
        """The metrics reported by eval; None for a zero denominator or a value that is not finite.

        Those of records are given for lists only.
        """
        known, known_nats = self.tokens - self.unknown_tokens, self.nats - self.unknown_nats
        spelled = self.nats + self.spelling_nats
        figures = {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "characters": self.characters,
            "words": self.words,
            "lines": self.lines,
            "nats": _finite(self.nats),
            "spelling_nats": _finite(self.spelling_nats),
            "nats_per_token": _ratio(self.nats, self.tokens),
            "perplexity": _exp(_ratio(self.nats, self.tokens)),
            "bits_per_byte": _ratio(spelled / math.log(2), self.bytes),
            "bits_per_character": _ratio(spelled / math.log(2), self.characters),
            "word_perplexity": _exp(_ratio(self.nats, self.words)),
            "unknown_tokens": self.unknown_tokens,
            "unknown_rate": self.unknown_rate(),
            "perplexity_excluding_unknown": _exp(_ratio(known_nats, known)),
        }
        if not self.records:
            return figures
        return figures | {
            "records": self.records,
            "nats_per_record": _ratio(self.nats, self.records),
            "bits_per_record": _ratio(spelled / math.log(2), self.records),
        }


def caveats(
    tokenizer: Tokenizer,
    unknown_rate: float | None,
    *,
    of: str = "the text",
    several: bool = False,
) -> list[str]:
    """Notes on how to read the metrics of the text called `of`; `several`: it has several documents."""
    notes = []
    if several and not tokenizer.ends_documents:
        notes.append("trained on a single document: no end of document is scored")
    if not tokenizer.lossless and tokenizer.spacing is None:
        notes.append(
            "the checkpoint has no white-space counts from its training text: bits per byte charges "
            "white space at default probabilities, which costs more"
        )
    if unknown_rate and unknown_rate > MOST_UNKNOWN:
        notes.append(
            f"{unknown_rate:.1%} of the tokens of {of} are unknown words: per-token metrics look better "
            "than they are; bits per byte includes the cost of spelling them"
        )
    return notes


def unseen_returns(returns: int, seen: Mapping[str, bool], *, of: str = "the text") -> list[str]:
    """A note on carriage returns in the text called `of`, if the training text had none."""
    if not returns or seen["carriage_returns"]:
        return []
    number = f"{returns:,} carriage returns" if returns > 1 else "a carriage return"
    return [f"{of} has {number} (CR); the training text had none"]


class TextCounter:
    """Counts a text that arrives in pieces, independently of where it is split.

    >>> counter = TextCounter()
    >>> for piece in ("to b", "e\\n", "or"):
    ...     counter.add(piece)
    >>> counter.counts().words, counter.counts().lines
    (3, 2)
    """

    def __init__(self) -> None:
        self._bytes = self._characters = self._words = self._newlines = 0
        self._last = ""

    def add(self, piece: str) -> None:
        """Count the next piece of the text."""
        if not piece:
            return
        self._bytes += len(piece.encode(errors="surrogatepass"))
        self._characters += len(piece)
        self._newlines += piece.count("\n")
        self._words += len(piece.split())
        if self._last and not self._last.isspace() and not piece[0].isspace():
            self._words -= 1  # a word split between two pieces was counted twice
        self._last = piece[-1]

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield `pieces` unchanged, counting them."""
        for piece in pieces:
            self.add(piece)
            yield piece

    def counts(self) -> Counts:
        """The counts so far."""
        return Counts(
            bytes=self._bytes,
            characters=self._characters,
            words=self._words,
            lines=self._newlines + (self._last not in ("", "\n")),
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ratio(numerator: float, denominator: float) -> float | None:
    return _finite(numerator / denominator) if denominator else None


def _exp(value: float | None) -> float | None:
    try:
        return None if value is None else math.exp(value)
    except OverflowError:
        return None  # JSON has no infinity
