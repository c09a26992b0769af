"""Tokenization at the border between a prompt and its continuation.

A token may start inside the prompt and end after it: after "the old " the model expects " house", not
"house" following a lone space. All encodings of the prompt up to such a token are therefore kept, and
sampling weights them by probability (Phan et al. 2024, "Exact byte-level probabilities"). Depends on a
tokenizer, not on models or random numbers. Invariant: the text of an opening followed by any token
allowed after it begins with the prompt, except for white space that the tokenizer folds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gru_lm.text.segments import LONGEST
from gru_lm.text.tokenizer import Tokenizer
from gru_lm.text.tokenizer_encoders import clean


@dataclass(frozen=True)
class Opening:
    """One encoding of the prompt up to the first sampled token."""

    tokens: tuple[int, ...]
    rest: str = (
        ""  # end of the prompt that is not in `tokens`; the first sampled token starts with it
    )
    following: np.ndarray | None = None  # candidates for the first sampled token; None: any
    ahead: bool = False  # whether the tokens end in a space that the prompt does not have


@dataclass(frozen=True)
class Prompt:
    """A prompt: its tokens as encoded by the tokenizer, and one or more openings."""

    tokens: tuple[int, ...]
    openings: tuple[Opening, ...]
    unknown: int  # out-of-vocabulary tokens in each opening

    def is_plain(self) -> bool:
        """Whether the first sampled token is unrestricted and starts after the prompt."""
        return len(self.openings) == 1 and self.openings[0].following is None


def read_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """Encode the prompt `text`, which may be any string."""
    head, tail, starts_line = _parted(tokenizer, clean(text))
    before = tuple(tokenizer.encode_text(head))
    whole = before + _encoded(tokenizer, tail)
    openings, folded = [], ""
    if _agrees(tokenizer, tail):
        openings.append(Opening(whole))
    elif tail.endswith(" "):
        spaced = _completions(tokenizer, b" ")
        ends = [tokenizer.newline_id, tokenizer.end_id]  # they fold preceding white space too
        openings.append(Opening(whole, " ", np.unique(np.append(spaced, ends))))
        tail, folded = tail[:-1], " "
    longest = _surfaces(tokenizer)[2]
    for at in range(max(0, len(tail) - longest), len(tail)):
        rest = tail[at:] + folded
        # At the start of a line the decoder drops the token's leading space.
        drops = tokenizer.drop_leading_space and starts_line and not at
        following = _completions(tokenizer, b" " * drops + rest.encode())
        if drops and not len(following):
            following = _completions(tokenizer, rest.encode())
        if len(following) and _agrees(tokenizer, tail[:at]):
            tokens = before + _encoded(tokenizer, tail[:at])
            openings.append(Opening(tokens, rest, following))
    openings = openings or [Opening(whole, ahead=not tail.endswith(" "))]

    def unknown(opening: Opening) -> int:
        return opening.tokens.count(-1 if tokenizer.unknown_id is None else tokenizer.unknown_id)

    # A word that a token across the border would complete is not out of vocabulary.
    least = min(map(unknown, openings))
    return Prompt(whole, tuple(each for each in openings if unknown(each) == least), least)


def _parted(tokenizer: Tokenizer, text: str) -> tuple[str, str, bool]:
    """Split `text` where no token can cross: head, tail, and whether the tail starts a line."""
    start = line = text.rfind("\n") + 1
    if tokenizer.kind != "word" and not tokenizer.whole:
        start += (len(text) - line) // LONGEST * LONGEST
    head, tail = text[:start], text[start:]
    if not tokenizer.lossless:
        folded = " ".join(tail.split()) + " " * (tail.strip() != "" and tail[-1].isspace())
        if tokenizer.encode_text(folded) == tokenizer.encode_text(tail):
            tail = folded
    return head, tail, start == line


def _agrees(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokens of `text` end in a space exactly if `text` does.

    A tokenizer may attach a trailing space to the next token, or add a space of its own.
    """
    if tokenizer.lossless:
        return True
    surfaces = b"".join(map(tokenizer.surface, _encoded(tokenizer, text)))
    return surfaces.endswith(b" ") == text.endswith(" ")


def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encode `text`, without a final token that is just the space added after the last word."""
    tokens = tokenizer.encode_text(text)
    if tokenizer.adds_trailing_space and not text.endswith(" ") and tokens:
        tokens = tokens[: len(tokens) - (tokenizer.surface(tokens[-1]) == b" ")]
    return tuple(tokens)


def _completions(tokenizer: Tokenizer, start: bytes) -> np.ndarray:
    """The tokens whose text begins with `start` and is longer than it."""
    sorted_surfaces, tokens, _ = _surfaces(tokenizer)
    return np.array(list(_with_prefix(sorted_surfaces, tokens, start)), np.int64)


def _with_prefix(surfaces: list[bytes], tokens: list[int], start: bytes) -> Iterator[int]:
    for at in range(bisect_left(surfaces, start), len(surfaces)):
        if not surfaces[at].startswith(start):
            return
        if len(surfaces[at]) > len(start):
            yield tokens[at]


@lru_cache(maxsize=1)
def _surfaces(tokenizer: Tokenizer) -> tuple[list[bytes], list[int], int]:
    """The surfaces of all tokens, sorted; their token ids; the length of the longest in bytes."""
    pairs = sorted((tokenizer.surface(token), token) for token in range(tokenizer.vocab_size))
    surfaces = [surface for surface, _ in pairs]
    return surfaces, [token for _, token in pairs], max(map(len, surfaces))
