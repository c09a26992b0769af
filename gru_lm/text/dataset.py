"""Data of a run: tokenizer and token stores of its texts, tokenized and counted.

The tokenizer is trained on the training split only. Independent of models.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gru_lm import caches
from gru_lm.errors import InputError
from gru_lm.signals import Stop
from gru_lm.text.documents import Document, readings
from gru_lm.text.overlap import Sketch, sketch
from gru_lm.text.parallel import WORTHWHILE
from gru_lm.text.parts import ListPart, Part, Progress, Texts
from gru_lm.text.record_batches import RecordTokens
from gru_lm.text.store import SUFFIX, Tokens, TokenStore, build_store, unigram_counts
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer
from gru_lm.text.tokenizer_encoders import VERSION


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

    @property
    def is_list(self) -> bool:
        """Whether the texts are lists of records."""
        return isinstance(self.texts.train, ListPart)

    @cached_property
    def training(self) -> Tokens | RecordTokens:
        """The tokens to train on, of running text or of a list."""
        return self.of(self.train)

    def of(self, store: TokenStore) -> Tokens | RecordTokens:
        """The tokens of a split, of running text or of a list."""
        if not self.is_list:
            return store.tokens
        ends = store.record_ends(self.tokenizer.end_id)
        return RecordTokens(store.tokens, ends, self.tokenizer.newline_id)

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
    always used in training text, in held-out text only if `tokenizer.ends_documents`. Raises InputError
    if the tokenizer cannot tell the ends of records from line ends within them.
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
    if tokenizer.newline_id == tokenizer.end_id:
        for (part, _), store in zip(parts, stores, strict=True):
            _check_ends(part, store, tokenizer)
    return Data(
        seen=seen,
        texts=texts,
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        test=test[0] if test else None,
    )


def _check_ends(part: Part, store: TokenStore, tokenizer: Tokenizer) -> None:
    """Raise InputError if records of several lines would be cut at their line ends."""
    if isinstance(part, ListPart) and len(store.record_ends(tokenizer.end_id)) != part.records:
        raise InputError(
            "records of several lines need a tokenizer that tells their ends from line ends",
            why="the given one has a single piece for both",
            hint="another tokenizer, such as --tokenizer bpe, or --records line",
        )


def _text(documents: Sequence[Document]) -> Iterator[str]:
    """The text of all documents, separated by newlines, for training a tokenizer."""
    for pieces in readings(documents):
        yield from pieces
        yield "\n"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
