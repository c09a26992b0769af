"""From named texts to the token stores of a run: read, cut, tokenize, count.

The cut between training and held-out text is a character position of the text, the same for every
tokenizer (`word` moves it to the next end of line). The tokenizer is trained on the training part
alone. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from gru_lm.text.parallel import WORTHWHILE
from gru_lm.text.sources import Document, Survey, cut, open_documents, survey
from gru_lm.text.store import TokenStore, build_store
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

Stop = Callable[[], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Part:
    """One part of the text: its documents, and what identifies it."""

    documents: tuple[Document, ...]
    characters: int
    fingerprint: str  # of the text it was cut from, and of where


@dataclass(frozen=True)
class Texts:
    """The three parts, `test` perhaps without a document."""

    train: Part
    valid: Part
    test: Part

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must find again."""
        return {name: getattr(self, name).fingerprint for name in ("train", "valid", "test")}


def split_texts(
    text: Sequence[str],
    *,
    valid: str | None,
    test: str | None,
    shares: tuple[Fraction, Fraction, Fraction],
    encoding: str,
    stdin: Path | None,
    at_line_ends: Callable[[int], bool],
    stop: Stop,
    progress: Progress,
    note: Callable[[str], None],
) -> Texts:
    """Open the texts and cut off what is held out, where no file of its own is named for it.

    floor(share * n) of the n characters train; `at_line_ends`, told n, says whether the cuts move to
    the next end of line. Raises InputError for a text that cannot be used.
    """

    def opened(specs: Sequence[str]) -> tuple[list[Document], Survey]:
        documents = open_documents(specs, encoding=encoding, stdin=stdin, stop=stop, note=note)
        return documents, survey(documents, stop=stop, progress=progress)

    documents, whole = opened(text)
    n = whole.characters
    ends = [n if valid else int(shares[0] * n), n if test else int((shares[0] + shares[1]) * n)]
    if at_line_ends(ends[0]):
        ends = [_line_end(documents, whole, end, stop) for end in ends]
    borders = {"train": (0, ends[0]), "valid": (ends[0], ends[1]), "test": (ends[1], n)}
    parts = {}
    for name, spec in (("train", None), ("valid", valid), ("test", test)):
        if spec:
            held_out, found = opened([spec])
            parts[name] = Part(tuple(held_out), found.characters, found.fingerprint)
        else:
            start, end = borders[name]
            fingerprint = _digest(whole.fingerprint, str(start), str(end))
            kept = tuple(cut(documents, whole.document_characters, start, end))
            parts[name] = Part(kept, end - start, fingerprint)
    return Texts(**parts)


def make_tokenizer(kind: str, train: Part, *, vocab_size: int | None, stop: Stop) -> Tokenizer:
    """A tokenizer of that kind for the training part."""
    return train_tokenizer(kind, lambda: _text(train.documents), vocab_size=vocab_size, stop=stop)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads: its texts, how they are tokenized, and the tokens of each part."""

    texts: Texts
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    test: TokenStore | None


def tokenize(
    texts: Texts, tokenizer: Tokenizer, *, cache: Path, workers: int, stop: Stop, progress: Progress
) -> Data:
    """The tokens of all parts, from the cache where they have been built before.

    Up to `workers` processes encode a part that is long enough to be worth it.
    """
    train, valid, test = (
        build_store(
            part.documents,
            tokenizer,
            directory=cache,
            key=_digest(part.fingerprint, tokenizer.fingerprint),
            workers=workers if part.characters >= WORTHWHILE else 1,
            stop=stop,
            progress=progress,
        )
        for part in (texts.train, texts.valid, texts.test)
    )
    return Data(
        texts=texts,
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        test=test if texts.test.characters else None,
    )


def _text(documents: Sequence[Document]) -> Iterator[str]:
    """All documents' text, to train a tokenizer on; no word goes on from one into the next."""
    for document in documents:
        yield from document.pieces()
        yield "\n"


def _line_end(documents: Sequence[Document], whole: Survey, position: int, stop: Stop) -> int:
    """The position after the first newline at or after `position`, or the end of the text."""
    if position in (0, whole.characters):
        return position
    rest = cut(documents, whole.document_characters, position - 1, whole.characters)
    at = position - 1
    for document in rest:
        for piece in document.pieces():
            stop()
            found = piece.find("\n")
            if found >= 0:
                return at + found + 1
            at += len(piece)
    return whole.characters


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
