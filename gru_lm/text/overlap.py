"""How much of one text is in another: by the lines of both, wherever they stand.

A sketch of a text holds the hashes of its lines; of a long text those below a limit, which is a random
sample. Lines are compared with single spaces; a long line is cut where its sentences end, or else by its
own words, so that what stands before does not move the cuts. Knows no model.
Invariant: a sketch depends on the set of a text's lines alone, and has at most MOST hashes.
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

MOST = 1 << 15  # hashes of a sketch: 256 KiB
LEAST = 0.02  # that is worth a word: texts of one kind have a little in common
SHORTEST = 12  # characters; shorter lines say little
LONG = 300  # characters of a line beyond which it is cut
MOST_WORDS = 64  # of a part
LARGEST = (1 << 63) - 1
_LINE_END = re.compile(r"[\r\n]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s|(?<=[。！？])")


@dataclass(frozen=True)
class Sketch:
    """Hashes of lines, sorted: all that are at most `limit`."""

    hashes: npt.NDArray[np.int64]
    limit: int = LARGEST

    def __or__(self, other: Sketch) -> Sketch:
        """Of both texts."""
        return _limited(np.union1d(self.hashes, other.hashes), min(self.limit, other.limit))

    def part_in(self, other: Sketch) -> float:
        """The share of this text's lines that the other text has too."""
        own = self.hashes[self.hashes <= min(self.limit, other.limit)]
        return float(np.isin(own, other.hashes).mean()) if len(own) else 0.0

    def packed(self) -> npt.NDArray[np.int64]:
        """The limit and the hashes."""
        return np.concatenate(([self.limit], self.hashes)).astype(np.int64)

    @classmethod
    def unpacked(cls, packed: npt.NDArray[np.int64]) -> Sketch:
        """The sketch that was packed. Raises ValueError where it is none."""
        if packed.dtype != np.int64 or packed.ndim != 1 or not 1 <= len(packed) <= MOST + 1:
            raise ValueError("no sketch of a text's lines")
        return cls(packed[1:], int(packed[0]))


def sketch(documents: Sequence[Document], *, stop: Stop) -> Sketch:
    """The sketch of a text."""
    hashes: set[int] = set()
    limit = LARGEST
    for found in _hashed(documents, stop):
        hashes.update(number for number, _ in found if number <= limit)
        if len(hashes) > 4 * MOST:
            limited = _limited(np.array(sorted(hashes)), limit)
            hashes, limit = set(limited.hashes.tolist()), limited.limit
    return _limited(np.array(sorted(hashes), np.int64), limit)


def shared(documents: Sequence[Document], sketches: Sequence[Sketch], *, stop: Stop) -> list[float]:
    """The share of the text, by characters, whose lines are in the text of each sketch."""
    known = [set(each.hashes.tolist()) for each in sketches]
    totals, same = [0] * len(known), [0] * len(known)
    for found in _hashed(documents, stop):
        for at, each in enumerate(sketches):
            for number, size in found:
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
    """The hash of each line, and its characters; in lists."""
    for pieces in readings(documents):
        for lines in _lines(pieces):
            stop()
            yield [
                (int.from_bytes(blake2b(line.encode(), digest_size=8).digest()) >> 1, len(line))
                for line in lines
                if len(line) >= SHORTEST
            ]


def _lines(pieces: Iterable[str]) -> Iterator[list[str]]:
    """The lines of a document, long ones in parts; in lists."""
    rest = ""
    for piece in itertools.chain(pieces, ["\n"]):
        *lines, rest = _LINE_END.split(rest + piece)
        parts = [part for line in lines for part in _parts(line)]
        if len(rest) > LONGEST:
            # The last word may go on in the next piece.
            before, word = [*rest.rsplit(None, 1), ""][:2]
            *found, last = _parts(before)
            parts += found
            rest = f"{last} {word}" + rest[len(rest.rstrip()) :]
        yield parts


def _parts(line: str) -> list[str]:
    """A line with single spaces, in parts if it is long."""
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
            part.append(word)
            if zlib.crc32(word.encode()) % 16 == 0 or len(part) == MOST_WORDS:
                parts.append(" ".join(part))
                part = []
        parts.append(" ".join(part))
    return parts
