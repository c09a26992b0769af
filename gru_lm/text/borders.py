"""Borders in running text: places near a position where a line or a word ends.

Independent of tokens. Invariant: a border depends on the text only, not on how it is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gru_lm.signals import Stop
from gru_lm.text.documents import readings

if TYPE_CHECKING:
    from gru_lm.text.parts import Part

_SPACE = re.compile(r"\s")


def after(whole: Part, position: int, until: int, stop: Stop) -> int:
    """The position after the next newline, if that is before `until`, else after the next white space.

    The search starts just before `position`. If there is neither, the end of the text.
    """
    if position in (0, whole.characters):
        return position
    at = position - 1
    space = None
    for pieces in readings(whole.cut((at, whole.characters)).documents):
        for piece in pieces:
            stop()
            if space is None and (match := _SPACE.search(piece)):
                space = at + match.end()
            newline = piece.find("\n")
            at += len(piece)
            if newline >= 0 and (found := at - len(piece) + newline + 1) < max(until, position + 1):
                return found
            if at >= until and space is not None:
                return space
    return whole.characters if space is None else space


def at_line_ends(
    part: Part, spans: Sequence[tuple[int, int]], *, near: int, stop: Stop
) -> list[tuple[int, int]]:
    """Move both borders of `spans` inwards to an end of line within `near` characters, if any."""
    windows = [
        part.cut(window)
        for start, end in spans
        for window in ((max(0, start - 1), start + near), (end - near, end))
    ]
    # Reads all windows in one pass over the text.
    read = readings(document for window in windows for document in window.documents)
    texts = []
    for window in windows:
        stop()
        texts.append("".join(piece for _ in window.documents for piece in next(read)))
    moved = []
    for (start, end), head, tail in zip(spans, texts[::2], texts[1::2], strict=True):
        after_first, after_last = head.find("\n") + 1, tail.rfind("\n") + 1
        moved.append(
            (
                start - 1 + after_first if start and after_first else start,
                end - near + after_last if after_last else end,
            )
        )
    return moved
