"""Overlap between texts: the fraction of lines they share, regardless of position.

A sketch of a text is the set of hashes of its lines; for a long text, of the smallest hashes, which
are a random sample (bottom-k sketch). White space is collapsed before comparison. Long lines are
split at sentence ends or, failing that, at content-defined words or characters, so that a split point
does not depend on the preceding text. Independent of models. Invariant: a sketch is a function of the
set of lines, and has at most MOST hashes.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from gru_lm.signals import Stop
from gru_lm.text.documents import Document, readings
from gru_lm.text.segments import LONGEST

MOST = 1 << 15  # maximum number of hashes in a sketch: 256 KiB
LEAST = 0.02  # smallest overlap worth reporting: similar texts always share a few lines
SHORTEST = 12  # characters; shorter lines are ignored
LONG = 300  # characters; longer lines and words are split
MOST_WORDS = 64  # maximum words of a part of a long line
WINDOW = 8  # characters whose hash decides whether a long word is split after them
LARGEST = (1 << 63) - 1
_LINE_END = re.compile(r"[\r\n]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s|(?<=[。！？])")


@dataclass(frozen=True)
class Sketch:
    """Sorted hashes of lines: all hashes not above `limit`."""

    hashes: npt.NDArray[np.int64]
    limit: int = LARGEST

    def __or__(self, other: Sketch) -> Sketch:
        """The sketch of both texts together."""
        return _limited(np.union1d(self.hashes, other.hashes), min(self.limit, other.limit))

    def part_in(self, other: Sketch) -> float:
        """Fraction of this text's lines that also occur in the other text."""
        own = self.hashes[self.hashes <= min(self.limit, other.limit)]
        return float(np.isin(own, other.hashes).mean()) if len(own) else 0.0

    def packed(self) -> npt.NDArray[np.int64]:
        """Serialise to an int64 array: the limit, then the hashes."""
        return np.concatenate(([self.limit], self.hashes)).astype(np.int64)

    @classmethod
    def unpacked(cls, packed: npt.NDArray[np.int64]) -> Sketch:
        """Inverse of `packed`. Raises ValueError if `packed` is not a sketch."""
        if packed.dtype != np.int64 or packed.ndim != 1 or not 1 <= len(packed) <= MOST + 1:
            raise ValueError("not a sketch of a text's lines")
        return cls(packed[1:], int(packed[0]))


def sketch(documents: Sequence[Document], *, stop: Stop) -> Sketch:
    """Compute the sketch of a text."""
    hashes: set[int] = set()
    limit = LARGEST
    for batch in _hashed(documents, stop):
        hashes.update(number for number, _ in batch if number <= limit)
        if len(hashes) > 4 * MOST:
            limited = _limited(np.array(sorted(hashes)), limit)
            hashes, limit = set(limited.hashes.tolist()), limited.limit
    return _limited(np.array(sorted(hashes), np.int64), limit)


def shared(documents: Sequence[Document], sketches: Sequence[Sketch], *, stop: Stop) -> list[float]:
    """Fraction of the text, by characters, whose lines occur in the text of each sketch."""
    known = [set(each.hashes.tolist()) for each in sketches]
    totals, same = [0] * len(known), [0] * len(known)
    for batch in _hashed(documents, stop):
        for at, each in enumerate(sketches):
            for number, size in batch:
                if number <= each.limit:
                    totals[at] += size
                    same[at] += size * (number in known[at])
    return [part / total if total else 0.0 for part, total in zip(same, totals, strict=True)]


def _limited(hashes: npt.NDArray[np.int64], limit: int) -> Sketch:
    kept = hashes[hashes <= limit]
    if len(kept) > MOST:
        kept, limit = kept[:MOST], int(kept[MOST - 1])
    return Sketch(kept, limit)


def _hashed(documents: Sequence[Document], stop: Stop) -> Iterator[list[tuple[int, int]]]:
    """Yield lists with the hash and length in characters of each line."""
    for pieces in readings(documents):
        for lines in _lines(pieces):
            stop()
            yield [
                (int.from_bytes(blake2b(line.encode(), digest_size=8).digest()) >> 1, len(line))
                for line in lines
                if len(line) >= SHORTEST
            ]


def _lines(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of a document's lines, with long lines in parts."""
    rest = ""
    for piece in itertools.chain(pieces, ["\n"]):
        *lines, rest = _LINE_END.split(rest + piece)
        parts = [part for line in lines for part in _parts(line)]
        if len(rest) > LONGEST:
            # The last word may continue in the next piece.
            before, word = ["", *rest.rsplit(None, 1)][-2:]
            *complete, last = _parts(before)
            *split, word = _split_word(word)
            if split:
                complete, last = [*complete, last, *split], ""
            parts += complete
            rest = f"{last} {word}" + rest[len(rest.rstrip()) :]
        yield parts


def _parts(line: str) -> list[str]:
    """Collapse white space, and split a long line into parts."""
    line = " ".join(line.split())
    if len(line) <= LONG:
        return [line]
    parts = []
    for sentence in _SENTENCE.split(line):
        if len(sentence) <= LONG:
            parts.append(sentence)
            continue
        part: list[str] = []
        for word in sentence.split(" "):
            *split, last = _split_word(word)
            if split:
                parts += [" ".join(part), *split]
                part = []
            part.append(last)
            if _ends(" ".join(part[-2:]), 16) or len(part) == MOST_WORDS:
                parts.append(" ".join(part))
                part = []
        parts.append(" ".join(part))
    return parts


def _split_word(word: str) -> list[str]:
    """Split a long word into parts of about 64 characters, at content-defined points."""
    if len(word) <= LONG:
        return [word]
    parts, start = [], 0
    for end in range(1, len(word)):
        size = end - start
        if size == LONG or (size >= WINDOW and _ends(word[end - WINDOW : end], 64)):
            parts.append(word[start:end])
            start = end
    return [*parts, word[start:]]


def _ends(text: str, often: int) -> bool:
    """Whether a part ends after `text`, which is true of one text in `often`."""
    return zlib.crc32(text.encode()) % often == 0
