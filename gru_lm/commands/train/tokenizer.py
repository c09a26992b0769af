"""The tokenizer of a run: an existing one, or one trained within its share of the budget.

The share is defined in planning/text.py.
"""

from __future__ import annotations

import dataclasses
import time

from gru_lm.config import Settings
from gru_lm.errors import UsageError, unknown_name
from gru_lm.planning.text import LONGEST_SHARE, TRAINED_PER_SECOND, plan_sample
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text import pieces as whole_pieces
from gru_lm.text.dataset import make_tokenizer
from gru_lm.text.parts import Part
from gru_lm.text.tokenizer import KINDS, Tokenizer, read_tokenizer
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.state import restore_tokenizer


class _Late(Exception):
    """Training the tokenizer exceeded its share of the budget."""


def with_pieces(config: Settings) -> Settings:
    """`config` with the whole pieces themselves instead of the name of their file.

    Raises UsageError or InputError if they cannot be used.
    """
    if config.pieces is None:
        return config
    pieces = whole_pieces.spelled(whole_pieces.read(config.pieces))
    return dataclasses.replace(config, pieces=pieces)


def given_tokenizer(config: Settings, source: Checkpoint | None) -> Tokenizer | None:
    """The existing tokenizer, of `source` or from FILE.model; None if one has to be trained.

    `config`: the result of `with_pieces`. Raises UsageError for settings that conflict with it.
    """
    path = config.tokenizer_file
    if source:
        kept = restore_tokenizer(source, source.tensors())
        if config.end_piece not in (None, kept.end_piece):
            raise UsageError(
                "--end-piece cannot be combined with --from: the run's tokenizer is kept",
                hint="leave it out",
            )
        if config.pieces not in (None, whole_pieces.spelled(kept.whole)):
            raise UsageError(
                "--pieces cannot be combined with --from: the run's tokenizer is kept",
                hint="leave it out",
            )
        return kept
    if config.end_piece is not None and not path:
        raise UsageError(
            "--end-piece applies only to a given SentencePiece model",
            hint="--tokenizer FILE.model, or leave --end-piece out",
        )
    if not path:
        return None
    for name in ("vocab_size", "tokenizer_characters", "pieces"):
        if getattr(config, name):
            raise UsageError(
                f"--{name.replace('_', '-')} cannot be combined with {path}, which is already trained",
                hint="leave it out",
            )
    return read_tokenizer(path, end_piece=config.end_piece)


def checked_kind(name: str) -> str:
    """`name`, if it is a kind of tokenizer. Raises UsageError otherwise."""
    if name not in KINDS:
        raise unknown_name("tokenizer", name, KINDS)
    return name


def naming(tokenizer: Tokenizer, config: Settings) -> Settings:
    """`config` with the settings that reproduce `tokenizer`."""
    named = dataclasses.replace(
        config,
        end_piece=tokenizer.end_piece,
        pieces=whole_pieces.spelled(tokenizer.whole) or None,
    )
    if config.start_from or config.tokenizer_file:
        return named
    return dataclasses.replace(
        named,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        tokenizer_characters=tokenizer.sample,
    )


def train_tokenizer(config: Settings, kind: str, train: Part, *, stop: Stop) -> Tokenizer:
    """Train a tokenizer of `kind` on the training text. `config`: the result of `with_pieces`.

    With a budget in minutes, training that takes too long is aborted and repeated on a quarter of the
    text.
    """
    if config.tokenizer_characters and kind not in TRAINED_PER_SECOND:
        raise UsageError(
            f"--tokenizer-characters cannot be combined with {kind}, which uses the whole text",
            hint="leave it out",
        )
    whole = whole_pieces.listed(config.pieces) if config.pieces else ()
    sample, least = plan_sample(config, kind, characters=train.characters)
    with console.progress("training the tokenizer", None):
        while True:
            size = min(sample or train.characters, train.characters)
            deadline = None
            if config.minutes and size > least:
                deadline = time.monotonic() + LONGEST_SHARE * 60 * config.minutes

            def on_time(deadline: float | None = deadline) -> None:
                stop()
                if deadline and time.monotonic() > deadline:
                    raise _Late

            try:
                return make_tokenizer(
                    kind,
                    train,
                    vocab_size=config.vocab_size,
                    characters=sample,
                    whole=whole,
                    stop=on_time,
                )
            except _Late:
                sample = max(least, size // 4)
