"""Pieces that stay whole: found in a text before the rest of it is encoded.

Occurrences are found from left to right, the longest piece first. The text between them is encoded as
if each occurrence were an end of line, which no tokenizer crosses, so any of our encoders does it.
Independent of the kind of tokenizer. Invariant: occurrences, and so tokens, depend on the text only, not
on how it is split.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gru_lm.text import segments
from gru_lm.text.tokenizer_encoders import Encoder, Ids, clean

# Python tries alternatives one by one, and compiles nested patterns recursively.
_MOST_OPTIONS, _DEEPEST = 16, 20


class Finder:
    r"""Splits a text at the occurrences of pieces, and at ends of lines.

    >>> Finder(["Cl", "Clx"]).split("CClxCl\nC")
    (['C', '', '', 'C'], ['Clx', 'Cl', '\n'])
    """

    def __init__(self, whole: Sequence[str]) -> None:
        self._pattern = re.compile(f"(\n|{_any_of(whole)})")
        self._longest = max(map(len, whole))

    def split(self, text: str) -> tuple[list[str], list[str]]:
        """The gaps of a text, and the N marks between these N + 1: pieces and ends of lines."""
        parts = self._pattern.split(text)
        return parts[::2], parts[1::2]

    def gaps(
        self, texts: Iterable[str], found: Callable[[list[str]], object] = len
    ) -> Iterator[str]:
        """A text that comes in parts, with each occurrence replaced by an end of line.

        `found` is called with the marks in the parts to come.
        """
        rest = ""
        for text in texts:
            rest += clean(text)
            gaps, marks, rest = self._settled(rest)
            found(marks)
            yield "\n".join(gaps)
        gaps, marks = self.split(rest)
        found(marks)
        yield "\n".join(gaps)

    def _settled(self, text: str) -> tuple[list[str], list[str], str]:
        """As `split`, up to where more text may change what is found; and the text from there on."""
        undecided = len(text) - self._longest + 1  # the first start of an occurrence that may do so
        gaps, marks = self.split(text)
        start = len(text) - len(gaps[-1])  # of the last gap
        while marks and start - len(marks[-1]) >= undecided:
            gaps.pop()
            start -= len(marks.pop()) + len(gaps[-1])
        end = max(start, undecided)
        return [*gaps[:-1], text[start:end]], marks, text[end:]


def _any_of(words: Sequence[str], depth: int = 0) -> str:
    """A regular expression for any of `words`, the longest first, that shares their beginnings."""
    if depth == _DEEPEST:
        return f"(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})"
    by_first: dict[str, list[str]] = {}
    for word in words:
        by_first.setdefault(word[:1], []).append(word)
    ends_here = by_first.pop("", None) is not None
    options = {}
    for first, alike in sorted(by_first.items()):
        beginning = _shared(alike)
        tails = [word[len(beginning) :] for word in alike]
        further = _any_of(tails, depth + 1) if any(tails) else ""
        options[first] = re.escape(beginning) + further
    return f"(?:{_by_range(options)}{'|' * ends_here})"


def _by_range(options: Mapping[str, str]) -> str:
    """Alternatives, given by their first characters in order, which narrow down many of them."""
    if len(options) <= _MOST_OPTIONS:
        return "|".join(options.values())
    firsts = list(options)
    size = -(-len(firsts) // _MOST_OPTIONS)
    ranges = [firsts[at : at + size] for at in range(0, len(firsts), size)]
    return "|".join(
        f"(?=[{re.escape(each[0])}-{re.escape(each[-1])}])"
        f"(?:{_by_range({first: options[first] for first in each})})"
        for each in ranges
    )


def _shared(words: Sequence[str]) -> str:
    """The longest beginning that all `words` have."""
    first, last = min(words), max(words)
    differ = (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differ, len(first))]


def gaps(texts: Iterable[str], whole: Sequence[str]) -> Iterator[str]:
    """The text between the occurrences of `whole`, with ends of lines in their place."""
    return Finder(whole).gaps(texts)


def whole_surfaces(whole: Sequence[str], *, as_words: bool) -> list[bytes]:
    """UTF-8 bytes of the pieces, with a space before them if they are told `as_words`."""
    spaced = [as_words and not piece[0].isspace() for piece in whole]
    return [(" " * space + piece).encode() for space, piece in zip(spaced, whole, strict=True)]


def _line(text: str, texts: Iterator[str], after: list[str]) -> Iterator[str]:
    """A line that begins with `text` and continues in `texts`; appends what follows it to `after`."""
    while not (end := text.find("\n") + 1):
        yield text
        if not (text := next(texts, "")):
            return
    yield text[:end]
    after.append(text[end:])


class WholeEncoder(Encoder):
    """Pieces that stay whole, and the text between them by the encoder of a tokenizer without them.

    `first_id`: the id of the first of `whole`. Every end of line must be one `newline_id` for `inner`.
    """

    def __init__(
        self, inner: Encoder, whole: Sequence[str], *, newline_id: int, first_id: int
    ) -> None:
        self._inner = inner
        self._finder = Finder(whole)
        self._newline_id = newline_id
        self._ids = {piece: first_id + number for number, piece in enumerate(whole)}
        self._ids["\n"] = newline_id

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """Blocks end at ends of lines; where a line is longer than `size`, as those of `inner` do."""
        texts = segments.joined(pieces, size)
        rest = ""
        for text in texts:
            rest += text
            if end := rest.rfind("\n") + 1:
                yield rest[:end]
                rest = rest[end:]
            elif len(rest) > size:
                after: list[str] = []
                yield from self._blocks_of_line(_line(rest, texts, after), size)
                rest = "".join(after)
        if rest:
            yield rest

    def _blocks_of_line(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """Blocks that end at a piece, or between two pieces where a block of `inner` may end."""
        waiting: deque[str] = deque()
        for block in self._inner.blocks(self._finder.gaps(pieces, waiting.extend), size):
            first, *others = block.split("\n")
            yield "".join([first, *(part for gap in others for part in (waiting.popleft(), gap))])

    def encode(self, text: str) -> Ids:
        gaps, marks = self._finder.split(clean(text))
        ids = np.array(self._inner.encode("\n".join(gaps)))
        ids[ids == self._newline_id] = np.fromiter(map(self._ids.__getitem__, marks), np.uint32)
        return ids

    def ends(self, text: str) -> npt.NDArray[np.int64]:
        gaps, marks = self._finder.split(clean(text))
        between = "\n".join(gaps)
        is_mark_N = self._inner.encode(between) == self._newline_id
        more_N = np.zeros(len(is_mark_N), np.int64)  # bytes of a piece beyond its end of line
        more_N[is_mark_N] = [len(mark.encode()) - 1 for mark in marks]
        return self._inner.ends(between) + np.cumsum(more_N)
