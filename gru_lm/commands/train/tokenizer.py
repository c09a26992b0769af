"""The tokenizer of a run: one that exists already, or one trained within its share of the budget.

How large that share is, planning/text.py says.
"""

from __future__ import annotations

import dataclasses
import time

from gru_lm.config import Settings
from gru_lm.errors import UsageError, unknown_name
from gru_lm.planning.text import LONGEST_SHARE, TRAINED_PER_SECOND, plan_sample
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.dataset import Part, make_tokenizer
from gru_lm.text.tokenizer import KINDS, Tokenizer, read_tokenizer
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.state import restore_tokenizer


class _Late(Exception):
    """A tokenizer's share of the budget is over."""


def given_tokenizer(config: Settings, source: Checkpoint | None) -> Tokenizer | None:
    """The tokenizer that need not be trained, if there is one: of `source`, or of FILE.model."""
    path = config.tokenizer_file
    if source:
        kept = restore_tokenizer(source, source.tensors())
        if config.end_piece not in (None, kept.end_piece):
            raise UsageError(
                "--end-piece does not go with --from: the run's tokenizer is kept",
                hint="leave it out",
            )
        return kept
    if config.end_piece is not None and not path:
        raise UsageError(
            "--end-piece goes with a SentencePiece model from elsewhere alone",
            hint="--tokenizer FILE.model, or leave --end-piece out",
        )
    if not path:
        return None
    for name in ("vocab_size", "tokenizer_characters"):
        if getattr(config, name):
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with {path}, which is trained already",
                hint="leave it out",
            )
    return read_tokenizer(path, end_piece=config.end_piece)


def checked_kind(name: str) -> str:
    """`name`, if it is that of a kind of tokenizer. Raises UsageError."""
    if name not in KINDS:
        raise unknown_name("tokenizer", name, KINDS)
    return name


def naming(tokenizer: Tokenizer, config: Settings) -> Settings:
    """`config` with the settings that give `tokenizer` again."""
    found = dataclasses.replace(config, end_piece=tokenizer.end_piece)
    if config.start_from or config.tokenizer_file:
        return found
    return dataclasses.replace(
        found,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        tokenizer_characters=tokenizer.sample,
    )


def train_tokenizer(config: Settings, kind: str, train: Part, *, stop: Stop) -> Tokenizer:
    """A tokenizer of `kind` for the training text.

    With a budget in minutes, a training that takes too long is ended and repeated on a quarter of
    the text.
    """
    if config.tokenizer_characters and kind not in TRAINED_PER_SECOND:
        raise UsageError(
            f"--tokenizer-characters does not go with {kind}, which is made of the whole text",
            hint="leave it out",
        )
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
                    kind, train, vocab_size=config.vocab_size, characters=sample, stop=on_time
                )
            except _Late:
                sample = max(least, size // 4)
