"""The cost of what tokens do not tell of a text: unknown words, white space, normalised characters.

A tokenizer that loses something leaves bytes that no token pays for. They are charged here, so that
tokens and charges together are a code of the text: from both, the text can be read back. Each token is
expected to cover its own text; what it covers is white space (`lead`) and the rest (`body`), and each is
either as expected, which is cheap, or spelled in bytes under a small model. Knows tokenizers, and no
models of tokens. Invariant: given a token, the probabilities of all texts that it can cover sum to at
most 1.

Shapes: N tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from gru_lm.text.documents import Document, readings
from gru_lm.text.tokenizer import Covering, Spacing, Tokenizer
from gru_lm.text.tokenizer_encoders import white_space_before

ORDER = 5  # bytes of context
SYMBOLS = 257  # the bytes, and the end
_END = b"\xff"  # no UTF-8 holds it

# Where white space stands: before the first token of a line, between two words, before a token that
# joins the one before it, before the end of a line or text; and whether a body is as expected.
PLACES = (START, BETWEEN, JOINED, END, BODY) = ("start", "between", "joined", "end", "body")
EXPECTED, CHANGED = "=", "changed"
_PRIOR = dict.fromkeys((START, BETWEEN, JOINED, END), 99) | {BODY: 999}  # times seen as expected
_USUAL_GAPS = (" ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\r", "\u00a0", "\u3000")

_MOST_GAPS, _LONGEST_GAP = 64, 32  # kept of each place; characters
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 2**17, 64


class Speller:
    """P(word), byte by byte and then its end, from up to ORDER bytes before, in nats.

    Each context's counts are mixed with the next shorter one's by the rule of Witten and Bell (1991),
    (c(b) + T·p(b | shorter)) / (c + T), where T different bytes were seen; the shortest with a uniform
    guess.

    >>> speller = Speller(["cat", "cats", "mat"])
    >>> speller.nats(b"mats") < speller.nats(b"stam") < speller.nats("猫".encode())
    True
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = words

    def nats(self, word: bytes) -> float:
        """−ln P(word)."""
        # A word begins as it ends, so that its first bytes are told from those within it.
        symbols = _END + word + _END
        return -sum(
            math.log(self._probability(symbols[max(0, at - ORDER) : at], symbols[at]))
            for at in range(1, len(symbols))
        )

    def _probability(self, context: bytes, symbol: int) -> float:
        p = 1 / SYMBOLS
        for length in range(len(context) + 1):
            found = self._followers.get(context[len(context) - length :])
            if found is None:
                break
            followers, total = found
            p = (followers.get(symbol, 0) + len(followers) * p) / (total + len(followers))
        return p

    @cached_property
    def _followers(self) -> dict[bytes, tuple[dict[int, int], int]]:
        """How often which symbol followed each context, and how often any did."""
        found: dict[bytes, dict[int, int]] = {}
        for word in self._words:
            symbols = _END + word.encode(errors="replace") + _END
            for at in range(1, len(symbols)):
                for start in range(max(0, at - ORDER), at + 1):
                    followers = found.setdefault(symbols[start:at], {})
                    followers[symbols[at]] = followers.get(symbols[at], 0) + 1
        return {context: (each, sum(each.values())) for context, each in found.items()}


class Gaps:
    """P(white space | place), in nats: what was counted in the training text, and any other bytes.

    P(as expected) = c / (n + T) and P(gap) = (c(gap) + T·spelled(gap)) / (n + T), where T different
    gaps were seen. Without counts, T = 1 and 99 of 99 were as expected.
    """

    def __init__(self, counts: Spacing | None) -> None:
        self._counts = {place: Counter((counts or {}).get(place, {})) for place in PLACES}
        for place, count in _PRIOR.items():
            self._counts[place][EXPECTED] += count
        self._sums = {place: sum(found.values()) for place, found in self._counts.items()}
        seen = (gap for place in PLACES[:-1] for gap in self._counts[place] if gap != EXPECTED)
        self._speller = Speller(dict.fromkeys([*_USUAL_GAPS, *seen]))

    def nats(self, place: str, gap: str | None) -> float:
        """−ln P(gap | place); None: the gap that the token tells."""
        found, seen = self._counts[place], self._sums[place]
        kinds = max(1, len(found) - 1)
        if gap is None:
            return -math.log(found[EXPECTED] / (seen + kinds))
        spelled = self._speller.nats(gap.encode(errors="surrogateescape"))
        counted = 0 if gap == EXPECTED else found[gap]  # which a Counter does not have to hold
        nats = (
            -math.log(counted + kinds * math.exp(-spelled))
            if counted
            else spelled - math.log(kinds)
        )
        return math.log(seen + kinds) + nats

    def body_nats(self, *, changed: bool) -> float:
        """−ln P(a body that is as expected, or that is not)."""
        found, seen = self._counts[BODY], self._sums[BODY] + 1
        return math.log(seen) - math.log(found[CHANGED] + 1 if changed else found[EXPECTED])


class Charges:
    """What a text costs in addition to its tokens; for a lossless tokenizer, nothing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._speller = speller_for(tokenizer)
        self._gaps = Gaps(tokenizer.spacing)
        self._known: dict[tuple[int, bytes, bool], float] = {}

    def of(self, coverings: Iterable[Covering]) -> Iterator[tuple[Covering, np.ndarray]]:
        """Of a document: its coverings, and the nats that each of their tokens is charged, [N].

        The last token is charged for the rest too; where there is no token, that is [1].
        """
        before: int | None = None
        for covering in coverings:
            if covering.texts is None:
                yield covering, np.zeros(len(covering.tokens_N))
                continue
            tokens = covering.tokens_N.tolist()
            keys = zip(
                tokens, covering.texts, _starts(self._tokenizer, tokens, before), strict=True
            )
            known = self._known
            nats_N = np.array([known[key] if key in known else self._nats(*key) for key in keys])
            if covering.rest is not None and (tokens or covering.rest):
                rest = covering.rest.decode(errors="surrogateescape")
                nats = self._gaps.nats(END, rest or None)
                nats_N = np.array([*nats_N[:-1], sum(nats_N[-1:], nats)])
            yield covering, nats_N
            before = tokens[-1] if tokens else before

    def _nats(self, token: int, text: bytes, starts: bool) -> float:
        place, gap, body, changed = _parts(self._tokenizer, token, text, starts)
        nats = self._gaps.nats(place, gap)
        if token == self._tokenizer.unknown_id:
            nats += self._speller.nats(body)
        else:
            nats += self._gaps.body_nats(changed=changed)
            nats += self._speller.nats(body) if changed else 0.0
        if len(text) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[token, text, starts] = nats
        return nats


def speller_for(tokenizer: Tokenizer) -> Speller:
    """Spells the words that a tokenizer does not know.

    It learns from the words that are known, each once: an unknown word resembles the rare words of the
    training text more than its frequent ones.
    """
    surfaces = (
        tokenizer.surface(token)
        for token in range(tokenizer.vocab_size)
        if token != tokenizer.unknown_id
    )
    words = (surface.decode(errors="replace").strip() for surface in surfaces)
    return Speller(filter(None, words))  # the ends of lines and texts are no words


def count_spacing(tokenizer: Tokenizer, documents: Sequence[Document]) -> Spacing | None:
    """How often which white space stands where, for Gaps; None where the tokenizer loses nothing."""
    if tokenizer.lossless:
        return None
    found: dict[str, Counter[str]] = {place: Counter() for place in PLACES}
    for pieces in readings(documents):
        before: int | None = None
        for covering in tokenizer.encode_covering(pieces):
            assert covering.texts is not None
            tokens = covering.tokens_N.tolist()
            starts = _starts(tokenizer, tokens, before)
            for (token, text, start), count in Counter(
                zip(tokens, covering.texts, starts, strict=True)
            ).items():
                place, gap, _, changed = _parts(tokenizer, token, text, start)
                found[place][EXPECTED if gap is None else gap] += count
                if token != tokenizer.unknown_id:
                    found[BODY][CHANGED if changed else EXPECTED] += count
            before = tokens[-1] if tokens else before
    return {place: dict(_kept(counts)) for place, counts in found.items()}


def _kept(counts: Counter[str]) -> Iterator[tuple[str, int]]:
    """The most frequent gaps, in an order that depends on the counts alone."""
    short = [item for item in counts.items() if len(item[0]) <= _LONGEST_GAP]
    yield from sorted(short, key=lambda item: (-item[1], item[0]))[:_MOST_GAPS]


def _starts(tokenizer: Tokenizer, tokens: Sequence[int], before: int | None) -> list[bool]:
    """Which tokens are the first of a line; `before` is the token before them, if any."""
    previous = [before, *tokens[:-1]][: len(tokens)]
    return [token is None or token == tokenizer.newline_id for token in previous]


def _parts(
    tokenizer: Tokenizer, token: int, text: bytes, starts: bool
) -> tuple[str, str | None, bytes, bool]:
    """Of what a token covers: place and gap (None: as told), body, whether that is not as told."""
    lead, body = white_space_before(text)
    told_lead, told_body = white_space_before(tokenizer.told(token, starts=starts))
    if token == tokenizer.newline_id:
        place = END
    elif starts:
        place = START
    else:
        place = BETWEEN if told_lead else JOINED
    return place, None if lead == told_lead else lead, body, body != told_body
