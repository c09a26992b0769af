"""Tokens to final text: what is handed out is never taken back.

Bytes that do not yet make a character are held back, and so is text that may be the beginning of a stop
string. Knows a tokenizer; nothing of models or of chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from gru_lm.text.tokenizer import Tokenizer


class StopStrings:
    """Lets text pass up to the first stop string, holding back what may be the start of one.

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
        """What may be shown of all the text so far, and whether a stop string has come."""
        if not self._stops:
            return text, False
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
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
        """What is held back, now that no more text comes."""
        rest, self._held = self._held, ""
        return rest


def whole_pieces(tokenizer: Tokenizer) -> dict[int, str]:
    """The text of each token whose text is the same wherever it stands, but the document's end."""
    surfaces = [tokenizer.surface(token) for token in range(tokenizer.vocab_size)]
    if tokenizer.drop_leading_space and any(surface.startswith(b" ") for surface in surfaces):
        return {}  # all depends on what came before
    texts = {token: surface.decode(errors="replace") for token, surface in enumerate(surfaces)}
    return {token: text for token, text in texts.items() if text and "\ufffd" not in text}


class Writer:
    """The tokens of one sample, after its prompt, to its final text.

    `whole` is what `whole_pieces` says of the tokenizer. `rest` is what of the prompt's text the first
    token holds; it is not written again.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        whole: dict[int, str],
        prompt: Sequence[int],
        *,
        stop_strings: Sequence[str],
        rest: str = "",
    ) -> None:
        self._decoder = tokenizer.decoder()
        self._stops = StopStrings(stop_strings)
        self._end = tokenizer.end_id if tokenizer.end_id != tokenizer.newline_id else None
        self._whole = whole
        self._rest = rest
        # Whether the decoder holds nothing back, so that whole pieces need not go through it.
        self._clear = not prompt or prompt[-1] in whole
        if not self._clear:
            for token in prompt:  # so that it knows where in a line it is
                self._decoder.push(token)

    def push(self, tokens: Sequence[int]) -> tuple[str, int, str | None]:
        """New, final text; how many of the tokens it is of; "stop" or "end" where that ended it."""
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
                # Bytes still held back can no longer become a character.
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
        """What may no longer become a stop string; a character cut in two is left out."""
        return self._stops.flush()
