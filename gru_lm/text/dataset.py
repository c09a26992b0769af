"""Data pipeline of a run, from input texts to token stores: read, split, tokenize, count.

The training and held-out splits are divided at a character position, which is the same for all
tokenizers (`word` moves it to the next end of line). The tokenizer is trained on the training split
only. Independent of models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gru_lm import caches
from gru_lm.signals import Stop
from gru_lm.text.documents import Document, cut, readings, survey
from gru_lm.text.overlap import Sketch, sketch
from gru_lm.text.parallel import WORTHWHILE
from gru_lm.text.segments import LONGEST
from gru_lm.text.sources import open_documents
from gru_lm.text.store import SUFFIX, TokenStore, build_store, unigram_counts
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer
from gru_lm.text.tokenizer_encoders import VERSION

Progress = Callable[[int], None]

_SPACE = re.compile(r"\s")
SLICES = 32  # of an excerpt; fewer if they would be shorter than a segment


@dataclass(frozen=True)
class Part:
    """One split of the text: its documents, their lengths in characters, and a fingerprint."""

    documents: tuple[Document, ...]
    lengths: tuple[int, ...]
    fingerprint: str  # of the original text and the positions of the cuts
    returns: int = 0  # carriage returns in the original text

    @property
    def characters(self) -> int:
        """Total length in characters."""
        return sum(self.lengths)

    def is_several(self) -> bool:
        """Whether there is more than one document; slices of the same document count once."""
        wholes = [getattr(document, "document", document) for document in self.documents]
        return any(whole != wholes[0] for whole in wholes)

    def cut(self, *spans: tuple[int, int]) -> Part:
        """The characters [start, end) of each of `spans`, as separate documents."""
        documents: list[Document] = []
        lengths: list[int] = []
        for start, end in spans:
            span_documents, span_lengths = cut(self.documents, self.lengths, start, end)
            documents += span_documents
            lengths += span_lengths
        positions = [str(position) for span in spans for position in span]
        fingerprint = _digest(self.fingerprint, *positions)
        return Part(tuple(documents), tuple(lengths), fingerprint, self.returns)


@dataclass(frozen=True)
class Texts:
    """The three splits; `test` may be empty."""

    train: Part
    valid: Part
    test: Part

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the splits, compared when a run is resumed."""
        return {name: getattr(self, name).fingerprint for name in ("train", "valid", "test")}


@dataclass(frozen=True)
class Sources:
    """The input texts: TEXT, and separate validation and test files, if any."""

    text: Part
    valid: Part | None
    test: Part | None

    def _ends(self, shares: tuple[Fraction, Fraction, Fraction]) -> list[int]:
        """Positions in TEXT where training and validation end: floor(cumulative share * n)."""
        n = self.text.characters
        return [
            n if self.valid else int(shares[0] * n),
            n if self.test else int((shares[0] + shares[1]) * n),
        ]

    def training_characters(self, shares: tuple[Fraction, Fraction, Fraction]) -> int:
        """Length of the training split in characters."""
        return self._ends(shares)[0]

    def carriage_returns(self) -> int:
        """Number of carriage returns in all texts."""
        return sum(part.returns for part in (self.text, self.valid, self.test) if part)

    def holds_out(self, shares: tuple[Fraction, Fraction, Fraction]) -> bool:
        """Whether the validation split is not empty."""
        start, end = self._ends(shares)
        return bool(self.valid.characters if self.valid else end > start)

    def split(
        self, shares: tuple[Fraction, Fraction, Fraction], *, at_line_ends: bool, stop: Stop
    ) -> Texts:
        """Split TEXT; validation and test files take the place of their share.

        With `at_line_ends`, each cut moves to the next end of a line; if that would leave the following
        split empty, to the next border between words.
        """
        ends = self._ends(shares)
        if at_line_ends:
            ends = [
                _after(self.text, end, until, stop)
                for end, until in zip(ends, (*ends[1:], self.text.characters), strict=True)
            ]
        return Texts(
            train=self.text.cut((0, ends[0])),
            valid=self.valid or self.text.cut((ends[0], ends[1])),
            test=self.test or self.text.cut((ends[1], self.text.characters)),
        )


def open_texts(
    text: Sequence[str],
    *,
    valid: str | None,
    test: str | None,
    encoding: str,
    stdin: Path | None,
    stop: Stop,
    progress: Progress,
    note: Callable[[str], None],
) -> Sources:
    """Open and survey the given texts. Raises InputError for a text that cannot be used."""

    def opened(specs: Sequence[str]) -> Part:
        documents = open_documents(specs, encoding=encoding, stdin=stdin, stop=stop, note=note)
        surveyed = survey(documents, stop=stop, progress=progress)
        return Part(
            surveyed.documents,
            surveyed.document_characters,
            surveyed.fingerprint,
            surveyed.carriage_returns,
        )

    return Sources(
        opened(text), opened([valid]) if valid else None, opened([test]) if test else None
    )


def excerpt(part: Part, characters: int | None, *, stop: Stop) -> Part:
    """An excerpt of at most `characters`, evenly spread over a part; None selects all of it.

    Slices have equal length and spacing; their borders move inwards to nearby ends of lines.
    Deterministic for a given text and length.
    """
    n = part.characters
    if characters is None or characters >= n:
        return part
    count = max(1, min(SLICES, characters // LONGEST))
    size = characters // count
    spans = [(i * n // count, i * n // count + size) for i in range(count)]
    return part.cut(*_at_line_ends(part, spans, near=min(LONGEST, size // 8), stop=stop))


def make_tokenizer(
    kind: str,
    train: Part,
    *,
    vocab_size: int | None,
    characters: int | None,
    whole: Sequence[str],
    stop: Stop,
) -> Tokenizer:
    """Train a tokenizer on the training split, or on a sample of at most `characters` from it."""
    return train_tokenizer(
        kind,
        lambda: _text(train.documents),
        vocab_size=vocab_size,
        characters=characters,
        whole=whole,
        stop=stop,
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Input of a run: its texts, the tokenizer, and the tokens of each split."""

    texts: Texts
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    test: TokenStore | None
    seen: Mapping[str, bool]  # properties of the training text, kept in the checkpoint (meta.SEEN)
    # Sketches of "train" and "valid"; until computed, those of the checkpoint.
    lines: Mapping[str, Sketch] = field(default_factory=dict)

    def with_lines(self, *, stop: Stop) -> Data:
        """A copy with sketches of the splits; "train" includes the texts of earlier training."""
        if "valid" in self.lines:
            return self
        parts = {"train": self.texts.train, "valid": self.texts.valid}
        sketches = {name: sketch(part.documents, stop=stop) for name, part in parts.items()}
        sketches["train"] |= self.lines.get("train", sketches["train"])
        return dataclasses.replace(self, lines=sketches)

    @cached_property
    def counts_V(self) -> npt.NDArray[np.int64]:  # noqa: N802
        """Token counts of the training split [V], cached."""
        return unigram_counts(self.train, self.tokenizer.vocab_size)


def tokenize(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    seen: Mapping[str, bool],
    cache: Path,
    workers: int,
    stop: Stop,
    progress: Progress,
    with_test: bool = True,
) -> Data:
    """Tokenize all splits, or all but test, using the cache.

    A split long enough to benefit is encoded by up to `workers` processes. End-of-document tokens are
    always used in training text, in held-out text only if `tokenizer.ends_documents`.
    """
    with_test = with_test and texts.test.characters > 0
    ends = tokenizer.ends_documents
    parts = [(texts.train, True), (texts.valid, ends)]
    if with_test:
        parts.append((texts.test, ends))
    train, valid, *test = stores = [
        build_store(
            part.documents,
            tokenizer,
            directory=cache,
            key=_digest(
                part.fingerprint, tokenizer.fingerprint, VERSION, *([] if ends else ["no ends"])
            ),
            ends=ends,
            workers=workers if part.characters >= WORTHWHILE else 1,
            stop=stop,
            progress=progress,
        )
        for part, ends in parts
    ]
    caches.trim(cache, f"*{SUFFIX}", keep=[store.path for store in stores])
    return Data(
        seen=seen,
        texts=texts,
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        test=test[0] if test else None,
    )


def _text(documents: Sequence[Document]) -> Iterator[str]:
    """The text of all documents, separated by newlines, for training a tokenizer."""
    for pieces in readings(documents):
        yield from pieces
        yield "\n"


def _after(whole: Part, position: int, until: int, stop: Stop) -> int:
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
            if newline >= 0 and (after := at - len(piece) + newline + 1) < max(until, position + 1):
                return after
            if at >= until and space is not None:
                return space
    return whole.characters if space is None else space


def _at_line_ends(
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


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
