"""Cost of information dropped by a tokenizer: unknown words, white space, normalised characters.

Bytes that cannot be recovered from the tokens are charged separately, so that tokens and charges
together form a lossless code of the text. The text covered by a token is split into white space
(`lead`) and the rest (`body`). Each part either equals the token's default text, which is cheap, or
is spelled in bytes under a small n-gram model. If a tokenizer puts a word's space at its end, white
space there is charged with the token that follows. Depends on tokenizers but not on language models.
Invariant: for given tokens, the probabilities of all texts that they can cover sum to at most 1.

Shapes: N tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gru_lm.text.documents import Document, readings
from gru_lm.text.tokenizer import Covering, Spacing, Tokenizer
from gru_lm.text.tokenizer_encoders import white_space_after, white_space_before

ORDER = 5  # bytes of context
SYMBOLS = 257  # 256 bytes and the end symbol
_END = b"\xff"  # never occurs in UTF-8

# Contexts of white space: before the first token of a line, between two words, before a token that
# continues a word, before the end of a line or text. BODY counts bodies that equal the default.
PLACES = (START, BETWEEN, JOINED, END, BODY) = ("start", "between", "joined", "end", "body")
EXPECTED, CHANGED = "=", "changed"
_PRIOR = dict.fromkeys((START, BETWEEN, JOINED, END), 99) | {BODY: 999}  # pseudocounts of EXPECTED
_USUAL_GAPS = (" ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\r", "\u00a0", "\u3000")

_MOST_GAPS, _LONGEST_GAP = 64, 32  # distinct gaps kept per place; characters of a gap
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 2**17, 64  # entries of the cache; bytes of an entry


class Speller:
    """Byte n-gram model of words, with an end symbol and contexts of up to ORDER bytes.

    Witten-Bell smoothing (1991): p(b | context) = (c(b) + T·p(b | shorter context)) / (c + T), where T
    is the number of distinct bytes seen after the context. The empty context backs off to the uniform
    distribution.

    >>> speller = Speller(["cat", "cats", "mat"])
    >>> speller.nats(b"mats") < speller.nats(b"stam") < speller.nats("猫".encode())
    True
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = words

    def nats(self, word: bytes) -> float:
        """−ln P(word)."""
        # The end symbol also marks the start, so that initial bytes have contexts of their own.
        symbols = _END + word + _END
        return -sum(
            math.log(self._probability(symbols[max(0, at - ORDER) : at], symbols[at]))
            for at in range(1, len(symbols))
        )

    def _probability(self, context: bytes, symbol: int) -> float:
        p = 1 / SYMBOLS
        for length in range(len(context) + 1):
            entry = self._followers.get(context[len(context) - length :])
            if entry is None:
                break
            followers, total = entry
            p = (followers.get(symbol, 0) + len(followers) * p) / (total + len(followers))
        return p

    @cached_property
    def _followers(self) -> dict[bytes, tuple[dict[int, int], int]]:
        """For each context, the counts of the symbols that follow it and their sum."""
        counts: dict[bytes, dict[int, int]] = {}
        for word in self._words:
            symbols = _END + word.encode(errors="replace") + _END
            for at in range(1, len(symbols)):
                for start in range(max(0, at - ORDER), at + 1):
                    followers = counts.setdefault(symbols[start:at], {})
                    followers[symbols[at]] = followers.get(symbols[at], 0) + 1
        return {context: (each, sum(each.values())) for context, each in counts.items()}


class Gaps:
    """Distribution of white space given its place: smoothed counts from the training text.

    P(expected) = c / (n + T) and P(gap) = (c(gap) + T·P_speller(gap)) / (n + T), where T is the
    number of distinct gaps seen. Without counts, T = 1 and c = n = 99.
    """

    def __init__(self, counts: Spacing | None) -> None:
        self._counts = {place: Counter((counts or {}).get(place, {})) for place in PLACES}
        for place, count in _PRIOR.items():
            self._counts[place][EXPECTED] += count
        self._sums = {place: sum(counter.values()) for place, counter in self._counts.items()}
        seen = (gap for place in PLACES[:-1] for gap in self._counts[place] if gap != EXPECTED)
        self._speller = Speller(dict.fromkeys([*_USUAL_GAPS, *seen]))

    def nats(self, place: str, gap: str | None) -> float:
        """−ln P(gap | place); None stands for the token's default gap."""
        counter, total = self._counts[place], self._sums[place]
        kinds = max(1, len(counter) - 1)
        if gap is None:
            return -math.log(counter[EXPECTED] / (total + kinds))
        spelled = self._speller.nats(gap.encode(errors="surrogateescape"))
        counted = 0 if gap == EXPECTED else counter[gap]  # a missing key counts 0
        nats = (
            -math.log(counted + kinds * math.exp(-spelled))
            if counted
            else spelled - math.log(kinds)
        )
        return math.log(total + kinds) + nats

    def body_nats(self, *, changed: bool) -> float:
        """−ln P(changed), where a changed body differs from the token's default."""
        counter, total = self._counts[BODY], self._sums[BODY] + 1
        return math.log(total) - math.log(counter[CHANGED] + 1 if changed else counter[EXPECTED])


class Charges:
    """Cost of a text in addition to its tokens; zero for a lossless tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._speller = speller_for(tokenizer)
        self._gaps = Gaps(tokenizer.spacing)
        self._known: dict[tuple[int, bytes, _Before], float] = {}

    def of(self, coverings: Iterable[Covering]) -> Iterator[tuple[Covering, np.ndarray]]:
        """Yield a document's coverings, each with the charge of its tokens in nats [N].

        The charge of the last token includes the rest of the document. A document without tokens yields
        one charge, [1].
        """
        before = _STARTS
        for covering in coverings:
            if covering.texts is None:
                yield covering, np.zeros(len(covering.tokens_N))
                continue
            tokens = covering.tokens_N.tolist()
            *befores, before = _befores(self._tokenizer, tokens, covering.texts, before)
            keys = zip(tokens, covering.texts, befores, strict=True)
            known = self._known
            nats_N = np.array([known[key] if key in known else self._nats(*key) for key in keys])
            if covering.rest is not None and (tokens or covering.rest):
                rest = before.gap + covering.rest.decode(errors="surrogateescape")
                nats = self._gaps.nats(END, rest or None)
                nats_N = np.array([*nats_N[:-1], sum(nats_N[-1:], nats)])
            yield covering, nats_N

    def _nats(self, token: int, text: bytes, before: _Before) -> float:
        place, gap, body, changed = _parts(self._tokenizer, token, text, before)
        nats = self._gaps.nats(place, gap)
        if token == self._tokenizer.unknown_id:
            nats += self._speller.nats(body)
        else:
            nats += self._gaps.body_nats(changed=changed)
            nats += self._speller.nats(body) if changed else 0.0
        if len(text) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[token, text, before] = nats
        return nats


def speller_for(tokenizer: Tokenizer) -> Speller:
    """Return the spelling model for a tokenizer's out-of-vocabulary words.

    It is estimated from the vocabulary, with each word counted once: unknown words resemble rare words
    more than frequent ones.
    """
    surfaces = (
        tokenizer.surface(token)
        for token in range(tokenizer.vocab_size)
        if token != tokenizer.unknown_id
    )
    words = (surface.decode(errors="replace").strip() for surface in surfaces)
    return Speller(filter(None, words))  # end-of-line and end-of-text tokens are empty


def count_spacing(tokenizer: Tokenizer, documents: Sequence[Document]) -> Spacing | None:
    """Count the white space of each place for Gaps; None if the tokenizer is lossless."""
    if tokenizer.lossless:
        return None
    counters: dict[str, Counter[str]] = {place: Counter() for place in PLACES}
    for pieces in readings(documents):
        before = _STARTS
        for covering in tokenizer.encode_covering(pieces):
            assert covering.texts is not None
            tokens = covering.tokens_N.tolist()
            *befores, before = _befores(tokenizer, tokens, covering.texts, before)
            for (token, text, left), count in Counter(
                zip(tokens, covering.texts, befores, strict=True)
            ).items():
                place, gap, _, changed = _parts(tokenizer, token, text, left)
                counters[place][EXPECTED if gap is None else gap] += count
                if token != tokenizer.unknown_id:
                    counters[BODY][CHANGED if changed else EXPECTED] += count
    return {place: dict(_kept(counts)) for place, counts in counters.items()}


def _kept(counts: Counter[str]) -> Iterator[tuple[str, int]]:
    """The most frequent gaps, ordered by count, then by text."""
    short = [item for item in counts.items() if len(item[0]) <= _LONGEST_GAP]
    yield from sorted(short, key=lambda item: (-item[1], item[0]))[:_MOST_GAPS]


class _Before(NamedTuple):
    """Context of a token."""

    starts: bool  # whether the token is the first of a line
    gap: str = ""  # white space at the end of the preceding token
    default: str = ""  # that of its default text


_STARTS, _WITHIN = _Before(starts=True), _Before(starts=False)


def _befores(
    tokenizer: Tokenizer, tokens: Sequence[int], texts: Sequence[bytes], before: _Before
) -> list[_Before]:
    """The context of each token, given that of the first, and of the token that follows the last."""

    def after(token: int, text: bytes) -> _Before:
        default = tokenizer.told(token, starts=False)
        return _Before(False, white_space_after(text)[1], white_space_after(default)[1])

    line_end = tokenizer.newline_id
    if not tokenizer.adds_trailing_space:
        return [before, *(_STARTS if token == line_end else _WITHIN for token in tokens)]
    pairs = zip(tokens, texts, strict=True)
    return [
        before,
        *(_STARTS if token == line_end else after(token, text) for token, text in pairs),
    ]


def _parts(
    tokenizer: Tokenizer, token: int, text: bytes, before: _Before
) -> tuple[str, str | None, bytes, bool]:
    """Split the text covered by a token: place, gap (None: the default), body, whether it changed."""
    default = tokenizer.told(token, starts=before.starts)
    if tokenizer.adds_trailing_space:  # the space is charged with the token that follows
        text, default = white_space_after(text)[0], white_space_after(default)[0]
    lead, body = white_space_before(text)
    default_lead, default_body = white_space_before(default)
    gap, default_gap = before.gap + lead, before.default + default_lead
    if token == tokenizer.newline_id:
        place, default_gap = END, ""
    elif before.starts:
        place = START
    else:
        place = BETWEEN if default_gap else JOINED
    return place, None if gap == default_gap else gap, body, body != default_body
