"""The border between a prompt and the text that follows it.

A token that a model has learned may begin in the prompt and end after it: after "the old " the next
token is " house", not "house" after a lone space. So every way to encode the prompt up to such a token
is kept, and sampling weighs them (Phan et al. 2024, "Exact byte-level probabilities"). Knows a
tokenizer; nothing of models or of chance. Invariant: the text of any opening and of a token that may
follow it begins with the prompt's text, but for white space that the tokenizer folds.
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
    """One way to encode the prompt up to the first token to be sampled."""

    tokens: tuple[int, ...]
    rest: str = ""  # of the prompt; the first sampled token begins with it
    following: np.ndarray | None = None  # the tokens that may be sampled first; None: any


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens as the tokenizer has them, and the openings to be weighed: at least one."""

    tokens: tuple[int, ...]
    openings: tuple[Opening, ...]
    unknown: int  # tokens of an opening that are not in the vocabulary

    def is_plain(self) -> bool:
        """Whether any token may follow, and none begins in the prompt."""
        return len(self.openings) == 1 and self.openings[0].following is None


def read_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """The prompt `text`, which may be any."""
    head, tail, starts_line = _parted(tokenizer, clean(text))
    before = tuple(tokenizer.encode_text(head))
    whole = before + tuple(tokenizer.encode_text(tail))
    found, folded = [], ""
    if _agrees(tokenizer, tail):
        found.append(Opening(whole))
    elif tail.endswith(" "):
        spaced = _completions(tokenizer, b" ")
        ends = [tokenizer.newline_id, tokenizer.end_id]  # white space before them is folded too
        found.append(Opening(whole, " ", np.unique(np.append(spaced, ends))))
        tail, folded = tail[:-1], " "
    longest = _surfaces(tokenizer)[2]
    for at in range(max(0, len(tail) - longest), len(tail)):
        rest = tail[at:] + folded
        # At a line's start the decoder drops the space that such a token begins with.
        drops = tokenizer.drop_leading_space and starts_line and not at
        following = _completions(tokenizer, b" " * drops + rest.encode())
        if drops and not len(following):
            following = _completions(tokenizer, rest.encode())
        if len(following) and _agrees(tokenizer, tail[:at]):
            opened = before + tuple(tokenizer.encode_text(tail[:at]))
            found.append(Opening(opened, rest, following))
    found = found or [Opening(whole)]

    def unknown(opening: Opening) -> int:
        return opening.tokens.count(-1 if tokenizer.unknown_id is None else tokenizer.unknown_id)

    # What a longer token can make known is no unknown word.
    least = min(map(unknown, found))
    return Prompt(whole, tuple(each for each in found if unknown(each) == least), least)


def _parted(tokenizer: Tokenizer, text: str) -> tuple[str, str, bool]:
    """What no token can straddle the end of, the rest, and whether that starts a line."""
    start = line = text.rfind("\n") + 1
    if tokenizer.kind != "word":
        start += (len(text) - line) // LONGEST * LONGEST
    head, tail = text[:start], text[start:]
    if not tokenizer.lossless:
        folded = " ".join(tail.split()) + " " * (tail.strip() != "" and tail[-1].isspace())
        if tokenizer.encode_text(folded) == tokenizer.encode_text(tail):
            tail = folded
    return head, tail, start == line


def _agrees(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokens of `text` end in a space if it does, and only then.

    A tokenizer may leave the space to the token after it, or add one that is not there.
    """
    if tokenizer.lossless:
        return True
    surfaces = b"".join(map(tokenizer.surface, tokenizer.encode_text(text)))
    return surfaces.endswith(b" ") == text.endswith(" ")


def _completions(tokenizer: Tokenizer, start: bytes) -> np.ndarray:
    """The tokens whose text begins with `start` and is longer."""
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
    """The texts of all tokens, sorted; whose they are; the characters of the longest, at most."""
    pairs = sorted((tokenizer.surface(token), token) for token in range(tokenizer.vocab_size))
    surfaces = [surface for surface, _ in pairs]
    return surfaces, [token for _, token in pairs], max(map(len, surfaces))
