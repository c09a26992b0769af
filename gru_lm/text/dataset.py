"""From named texts to the token stores of a run: read, cut, tokenize, count.

The cut between training and held-out text is a character position of the text, the same for every
tokenizer (`word` moves it to the next end of line). The tokenizer is trained on the training part
alone. Knows nothing of models.
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
SLICES = 32  # of a text of which not all is used; fewer, where they would be shorter than a segment


@dataclass(frozen=True)
class Part:
    """One part of the text: its documents, their characters, and what identifies it."""

    documents: tuple[Document, ...]
    lengths: tuple[int, ...]
    fingerprint: str  # of the text it was cut from, and of where
    returns: int = 0  # carriage returns in the text it was cut from

    @property
    def characters(self) -> int:
        """Of all documents."""
        return sum(self.lengths)

    def is_several(self) -> bool:
        """Whether it is of more than one document; slices of one document are one."""
        wholes = [getattr(document, "document", document) for document in self.documents]
        return any(whole != wholes[0] for whole in wholes)

    def cut(self, *spans: tuple[int, int]) -> Part:
        """The characters [start, end) of this part, for each of `spans`: documents of their own."""
        documents: list[Document] = []
        lengths: list[int] = []
        for start, end in spans:
            found, theirs = cut(self.documents, self.lengths, start, end)
            documents += found
            lengths += theirs
        where = [str(position) for span in spans for position in span]
        fingerprint = _digest(self.fingerprint, *where)
        return Part(tuple(documents), tuple(lengths), fingerprint, self.returns)


@dataclass(frozen=True)
class Texts:
    """The three parts, `test` perhaps without a document."""

    train: Part
    valid: Part
    test: Part

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must find again."""
        return {name: getattr(self, name).fingerprint for name in ("train", "valid", "test")}


@dataclass(frozen=True)
class Sources:
    """The texts as they are named: TEXT, and the files of held-out text, where there are any."""

    text: Part
    valid: Part | None
    test: Part | None

    def _ends(self, shares: tuple[Fraction, Fraction, Fraction]) -> list[int]:
        """Where the training part and the validation part of TEXT end: floor(share * n)."""
        n = self.text.characters
        return [
            n if self.valid else int(shares[0] * n),
            n if self.test else int((shares[0] + shares[1]) * n),
        ]

    def training_characters(self, shares: tuple[Fraction, Fraction, Fraction]) -> int:
        """Characters of the training part."""
        return self._ends(shares)[0]

    def carriage_returns(self) -> int:
        """In all texts."""
        return sum(part.returns for part in (self.text, self.valid, self.test) if part)

    def holds_out(self, shares: tuple[Fraction, Fraction, Fraction]) -> bool:
        """Whether there is any text to validate on."""
        start, end = self._ends(shares)
        return bool(self.valid.characters if self.valid else end > start)

    def split(
        self, shares: tuple[Fraction, Fraction, Fraction], *, at_line_ends: bool, stop: Stop
    ) -> Texts:
        """Cut the held-out parts off TEXT where no file is named for them.

        With `at_line_ends` each cut moves to the next end of a line, or between two words where
        there is none before the end of the part that it begins.
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
    """Open and survey the texts that are named. Raises InputError for one that cannot be used."""

    def opened(specs: Sequence[str]) -> Part:
        documents = open_documents(specs, encoding=encoding, stdin=stdin, stop=stop, note=note)
        found = survey(documents, stop=stop, progress=progress)
        return Part(
            found.documents, found.document_characters, found.fingerprint, found.carriage_returns
        )

    return Sources(
        opened(text), opened([valid]) if valid else None, opened([test]) if test else None
    )


def excerpt(part: Part, characters: int | None, *, stop: Stop) -> Part:
    """At most `characters` of a part, evenly spread over it; all of it where that is None or enough.

    Slices of one size at one distance, moved inwards to ends of lines where there are any near: a
    function of the text and the number alone.
    """
    n = part.characters
    if characters is None or characters >= n:
        return part
    count = max(1, min(SLICES, characters // LONGEST))
    size = characters // count
    spans = [(i * n // count, i * n // count + size) for i in range(count)]
    return part.cut(*_at_line_ends(part, spans, near=min(LONGEST, size // 8), stop=stop))


def make_tokenizer(
    kind: str, train: Part, *, vocab_size: int | None, characters: int | None, stop: Stop
) -> Tokenizer:
    """A tokenizer of that kind for the training part, or for a sample of so many characters."""
    return train_tokenizer(
        kind,
        lambda: _text(train.documents),
        vocab_size=vocab_size,
        characters=characters,
        stop=stop,
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads: its texts, how they are tokenized, and the tokens of each part."""

    texts: Texts
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    test: TokenStore | None
    seen: Mapping[str, bool]  # what the training text held, for the checkpoint (meta.SEEN)
    # Of "train" and "valid"; before they are made, what checkpoints know.
    lines: Mapping[str, Sketch] = field(default_factory=dict)

    def with_lines(self, *, stop: Stop) -> Data:
        """The same with sketches of training and held-out text, and what was trained on before."""
        if "valid" in self.lines:
            return self
        parts = {"train": self.texts.train, "valid": self.texts.valid}
        found = {name: sketch(part.documents, stop=stop) for name, part in parts.items()}
        found["train"] |= self.lines.get("train", found["train"])
        return dataclasses.replace(self, lines=found)

    @cached_property
    def counts_V(self) -> npt.NDArray[np.int64]:  # noqa: N802
        """How often each token occurs in the training text, which is counted once: [V]."""
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
    """The tokens of all parts, or all but the test text, from the cache where they have been built.

    Up to `workers` processes encode a part that is long enough to be worth it. Documents of held-out
    text are followed by an end only where the tokenizer says that ends are scored.
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
    """All documents' text, to train a tokenizer on; no word goes on from one into the next."""
    for pieces in readings(documents):
        yield from pieces
        yield "\n"


def _after(whole: Part, position: int, until: int, stop: Stop) -> int:
    """The position after the first newline at or after `position`, or else after the first white space.

    The newline must come before `until`, so that something is left between the two. Without either it
    is the end of the text.
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
            found = piece.find("\n")
            at += len(piece)
            if found >= 0 and (after := at - len(piece) + found + 1) < max(until, position + 1):
                return after
            if at >= until and space is not None:
                return space
    return whole.characters if space is None else space


def _at_line_ends(
    part: Part, spans: Sequence[tuple[int, int]], *, near: int, stop: Stop
) -> list[tuple[int, int]]:
    """`spans` with either border moved inwards to an end of line within `near` characters."""
    windows = [
        part.cut(window)
        for start, end in spans
        for window in ((max(0, start - 1), start + near), (end - near, end))
    ]
    # All in one pass over the text.
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
