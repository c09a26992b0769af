"""Incremental decoding of token ids to text.

Depends on the surfaces of the tokens only, not on a tokenizer. Invariant: returned text is final.
"""

from __future__ import annotations

import codecs


class Decoder:
    """Decodes token by token; incomplete characters are buffered.

    Invalid bytes become U+FFFD. If the tokenizer adds a space before each word (`word`, or a foreign
    model with a dummy prefix), the space at the start of a line is dropped; if it adds one after each
    word, the space at the end of a line is dropped.
    """

    def __init__(
        self,
        surfaces: list[bytes],
        *,
        end_id: int,
        drop_leading_space: bool,
        drop_trailing_space: bool,
    ) -> None:
        self._surfaces = surfaces
        self._end_id = end_id
        self._drop = drop_leading_space
        self._drop_trailing = drop_trailing_space
        self._line_start = True
        self._held = b""  # a space that is dropped if the line ends here
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        surface = self._surfaces[token]
        dropped = int(self._drop and self._line_start and surface.startswith(b" "))
        if surface:
            self._line_start = surface.endswith(b"\n")
        elif token == self._end_id:
            self._line_start = True
        surface = surface[dropped:]
        if self._drop_trailing:
            surface = (b"" if self._line_start else self._held) + surface
            self._held = b" " if surface.endswith(b" ") else b""
            surface = surface.removesuffix(self._held)
        return self._utf8.decode(surface)

    def forget_space(self) -> None:
        """Drop a space held back at the end of the text so far; it has been written already."""
        self._held = b""

    def flush(self) -> str:
        """Return an incomplete character as U+FFFD, and reset the decoder."""
        self._line_start, self._held = True, b""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
