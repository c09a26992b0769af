"""Segmentation of text: lines with their terminators, split every 8,192 characters if longer.

Invariant: segments depend only on the text, not on the pieces in which it is read, so tokenizer training
and encoding do not depend on how a file was read. With `at_spaces`, a long line is split after the last
space before the limit, if there is one. Independent of the tokenizer. Memory is bounded by one piece (or
block) and one segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LONGEST = 8192


def segments(pieces: Iterable[str], *, at_spaces: bool = False) -> Iterator[list[str]]:
    """Yield the segments of a text in order, in at most one list per piece and one at the end.

    >>> list(segments(["a\\nb", "c\\n\\n", "d"]))
    [['a\\n'], ['bc\\n', '\\n'], ['d']]
    """
    rest = ""
    for piece in pieces:
        rest += piece
        found = []
        start = 0
        while True:
            end = rest.find("\n", start, start + LONGEST) + 1
            if not end:
                if start + LONGEST > len(rest):
                    break
                end = _cut(rest, start, at_spaces)
            found.append(rest[start:end])
            start = end
        if found:
            rest = rest[start:]
            yield found
    if rest:
        yield [rest]


def _cut(text: str, start: int, at_spaces: bool) -> int:
    """Where to split a long line that starts at `start`, or was split there."""
    end = start + LONGEST
    return (at_spaces and text.rfind(" ", start, end) + 1) or end


def split(text: str, *, at_spaces: bool = False) -> list[str]:
    """Return the segments of a complete text."""
    return [segment for found in segments([text], at_spaces=at_spaces) for segment in found]


def joined(pieces: Iterable[str], size: int) -> Iterator[str]:
    """Regroup a text into longer pieces, of `size` characters or slightly more."""
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        for start in range(0, len(piece), size):
            part = piece[start : start + size]
            waiting.append(part)
            length += len(part)
            if length >= size:
                yield "".join(waiting)
                waiting, length = [], 0
    if waiting:
        yield "".join(waiting)


def blocks(pieces: Iterable[str], size: int, *, at_spaces: bool = False) -> Iterator[str]:
    """Regroup a text into blocks of about `size` characters, each of whole segments.

    >>> list(blocks(["a\\nb", "c\\n\\n", "d"], 4))
    ['a\\nbc\\n\\n', 'd']
    """
    rest = ""
    for piece in joined(pieces, size):
        text = rest + piece
        end = text.rfind("\n") + 1
        while end + LONGEST <= len(text):
            end = _cut(text, end, at_spaces)
        rest = text[end:]
        if end:
            yield text[:end]
    if rest:
        yield rest
