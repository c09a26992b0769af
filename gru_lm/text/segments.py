"""Text cut into segments: a line with its end, a longer line every 8,192 characters.

Segments are a function of the text alone, not of the pieces in which it arrives; that is what makes
training and encoding independent of how a file was read. Knows nothing of tokenizers. Memory is
bounded by one piece and one segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LONGEST = 8192


def segments(pieces: Iterable[str]) -> Iterator[list[str]]:
    """The segments of a text, in order, in lists: at most one list a piece, and one at the end.

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
                end = start + LONGEST
                if end > len(rest):
                    break
            found.append(rest[start:end])
            start = end
        if found:
            rest = rest[start:]
            yield found
    if rest:
        yield [rest]
