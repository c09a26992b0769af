"""Incremental conversion of sampled tokens to text.

Buffers incomplete characters and text that may be the start of a stop string. Depends on a
tokenizer, not on models or random numbers. Invariant: text that has been returned is final.
"""

from __future__ import annotations

from collections.abc import Sequence

from gru_lm.generation.prompt import Opening
from gru_lm.text.tokenizer import Tokenizer


class StopStrings:
    """Passes text through up to the first stop string; buffers a possible start of one.

    >>> stops = StopStrings(["END"])
    >>> stops.push("one E"), stops.push("N"), stops.push("D two")
    (('one ', False), ('', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def finds(self, text: str) -> bool:
        """Whether `push` of this text would find a stop string."""
        return bool(self._stops) and any(stop in self._held + text for stop in self._stops)

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is now final, and whether a stop string was found."""
        if not self._stops:
            return text, False
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self._held = ""
            return held[: min(places)], True
        keep = next(
            (
                size
                for size in range(min(len(held), max(map(len, self._stops)) - 1), 0, -1)
                if any(stop.startswith(held[-size:]) for stop in self._stops)
            ),
            0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """Return the buffered text at the end of the input."""
        rest, self._held = self._held, ""
        return rest


def whole_pieces(tokenizer: Tokenizer) -> dict[int, str]:
    """The text of each token that decodes independently of context; without the end of a document."""
    surfaces = [tokenizer.surface(token) for token in range(tokenizer.vocab_size)]
    if tokenizer.drop_leading_space and any(surface.startswith(b" ") for surface in surfaces):
        return {}  # any token may depend on its position in the line
    if tokenizer.adds_trailing_space:
        return {}  # or on the token after it
    texts = {token: surface.decode(errors="replace") for token, surface in enumerate(surfaces)}
    return {token: text for token, text in texts.items() if text and "\ufffd" not in text}


class Writer:
    """Converts the tokens of one sample to text.

    `whole` is the result of `whole_pieces` for the tokenizer. The end of the prompt that the first token
    repeats is removed from the output.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        whole: dict[int, str],
        opening: Opening,
        *,
        stop_strings: Sequence[str],
    ) -> None:
        self._decoder = tokenizer.decoder()
        self._stops = StopStrings(stop_strings)
        self._end = tokenizer.end_id if tokenizer.end_id != tokenizer.newline_id else None
        self._whole = whole
        self._rest = opening.rest
        # Whether the decoder's buffer is empty, so that whole pieces can bypass it.
        self._clear = not opening.tokens or opening.tokens[-1] in whole
        if not self._clear:
            for token in opening.tokens:  # sets the decoder's position in the line
                self._decoder.push(token)
            if not opening.ahead:
                self._decoder.forget_space()

    def push(self, tokens: Sequence[int]) -> tuple[str, int, str | None]:
        """Return new final text, the number of tokens used, and "stop" or "end" if the sample ended."""
        if self._clear and not self._rest:
            pieces = [self._whole.get(token, "") for token in tokens]
            text = "".join(pieces)
            if "" not in pieces and not self._stops.finds(text):
                return self._stops.push(text)[0], len(tokens), None
        parts: list[str] = []
        for used, token in enumerate(tokens, 1):
            text = self._decoder.push(token)
            if self._rest:
                text, self._rest = text.removeprefix(self._rest), ""
            text, stopped = self._stops.push(text)
            if token == self._end and not stopped:
                # Buffered bytes can no longer form a character.
                last, stopped = self._stops.push(self._decoder.flush())
                text += last
                if not stopped:
                    return "".join([*parts, text, self._stops.flush()]), used, "end"
            parts.append(text)
            if stopped:
                return "".join(parts), used, "stop"
        self._clear = tokens[-1] in self._whole
        return "".join(parts), len(tokens), None

    def flush(self) -> str:
        """Return the buffered text at the length limit; an incomplete character is dropped."""
        return self._stops.flush()
