"""What it costs to spell a word that a model does not know: the open-vocabulary part of its figures.

A model of bytes, made of the words that the model does know, each once: they stand for the training
text, and an unknown word resembles its rare words more than its frequent ones. Any text at all can be
spelled. Knows words, and no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

ORDER = 5  # bytes that the next one is predicted from, at most
END = 256  # of a word
SYMBOLS = 257


class Speller:
    """P(word), byte by byte and then its end, from up to ORDER bytes before, in nats.

    Each context's counts are mixed with the next shorter one's by the rule of Witten and Bell (1991),
    (c(b) + T·p(b | shorter)) / (c + T), where T different bytes were seen; the shortest with a uniform
    guess.

    >>> speller = Speller(["cat", "cats", "mat"])
    >>> speller.nats("mats") < speller.nats("stam") < speller.nats("猫")
    True
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = words
        self._known: dict[str, float] = {}

    def nats(self, word: str) -> float:
        """−ln P(word)."""
        if word not in self._known:
            symbols = _symbols(word)
            self._known[word] = -sum(
                math.log(self._probability(symbols[max(0, at - ORDER) : at], symbol))
                for at, symbol in enumerate(symbols)
                if at
            )
        return self._known[word]

    def _probability(self, context: tuple[int, ...], symbol: int) -> float:
        p = 1 / SYMBOLS
        for length in range(len(context) + 1):
            followers = self._followers.get(context[len(context) - length :])
            if followers is None:
                break
            total, kinds = sum(followers.values()), len(followers)
            p = (followers.get(symbol, 0) + kinds * p) / (total + kinds)
        return p

    @cached_property
    def _followers(self) -> dict[tuple[int, ...], dict[int, int]]:
        """How often which symbol followed each context."""
        found: dict[tuple[int, ...], dict[int, int]] = {}
        for word in self._words:
            symbols = _symbols(word)
            for at in range(1, len(symbols)):
                for start in range(max(0, at - ORDER), at + 1):
                    followers = found.setdefault(symbols[start:at], {})
                    followers[symbols[at]] = followers.get(symbols[at], 0) + 1
        return found


def _symbols(word: str) -> tuple[int, ...]:
    """A word begins as it ends, so that its first bytes are told from those within it."""
    return (END, *word.encode(errors="replace"), END)
