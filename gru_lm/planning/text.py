"""What is planned before a text is tokenized: by what, and how much of it.

    tokenizer   char up to 5 M characters, bpe beyond: a subword sees further per step; bpe and unigram
                are trained on what a small part of a budget in minutes is enough for
    characters  what the budget can use of a large text, with a margin
    held out    what can be scored in a small part of the time that training takes

Knows no files and no models; what a budget buys is the planner's to say.
"""

from __future__ import annotations

import math

from gru_lm.config import Settings
from gru_lm.errors import InputError
from gru_lm.planning.model import (
    BPTT,
    STREAMS,
    STREAMS_TIED,
    TOKENS_PER_WEIGHT,
    WEIGHTS_PER_SECOND,
)
from gru_lm.text.tokenizer_training import CHARACTERS_PER_PIECE

LEAST_CHARACTERS = 100  # of training text: under that there is nothing to learn from
MOST_CHARACTERS_FOR_CHAR = 5_000_000
CHARACTERS_PER_TOKEN = {
    "char": 1.0,
    "byte": 1.0,
    "bpe": 5.0,
    "unigram": 5.0,
    "word": 7.0,
}  # at most
MARGIN = 1.2  # of text over what the budget needs
# A budget never leaves less of the text: vocabulary and size follow what is used, which takes a second.
LEAST_USED = 5_000_000
# Of a budget in minutes, to train a tokenizer in; LONGEST_SHARE ends it, and a smaller sample is tried.
TOKENIZER_SHARE, LONGEST_SHARE = 0.05, 0.1
# Sampled text a second that SentencePiece is trained on: prose and code on one core are quicker.
TRAINED_PER_SECOND = {"bpe": 1_000_000, "unigram": 200_000}  # characters
LEAST_SAMPLED = 100_000  # characters
LEAST_VALIDATED = 300_000  # tokens
TEST_SHARE = 0.2  # of a budget in minutes that the test text may take
# Bytes of a test text a second: read, tokenized and counted at 9 MB/s, scored by a small model at 11.
TEST_SPEED = 5e6
VALIDATION_SHARE = 0.02  # of the training's time, for one validation


def plan_tokenizer(settings: Settings, *, characters: int) -> str:
    """The tokenizer for `characters` of training text. Raises InputError where that is too little."""
    if characters < LEAST_CHARACTERS:
        raise InputError(
            f"the training text is too short: {characters} characters",
            why=f"at least {LEAST_CHARACTERS} must be left after the split {settings.split}",
            hint="add text, or train on @docstrings",
        )
    return settings.tokenizer or ("char" if characters <= MOST_CHARACTERS_FOR_CHAR else "bpe")


def plan_sample(settings: Settings, kind: str, *, characters: int) -> tuple[int | None, int]:
    """How much of `characters` of training text to train a tokenizer on, at most (None: all of it).

    And the least that it may be cut to where that takes longer than LONGEST_SHARE of the minutes.
    """
    if settings.tokenizer_characters or not settings.minutes or kind not in TRAINED_PER_SECOND:
        return settings.tokenizer_characters, characters
    least = max(LEAST_SAMPLED, CHARACTERS_PER_PIECE * (settings.vocab_size or 0))
    seconds = TOKENIZER_SHARE * 60 * settings.minutes
    most = max(least, int(seconds * TRAINED_PER_SECOND[kind]))
    return most if most < characters else None, least


def plan_characters(
    settings: Settings,
    *,
    characters: int,
    device: str,
    characters_per_token: float,
) -> int | None:
    """How much of `characters` of training text the budget can use, at most; None: all of it.

    A budget in epochs alone means the whole text.
    """
    if settings.characters:
        return settings.characters
    most = max(LEAST_USED, MARGIN * _tokens(settings, device) * characters_per_token)
    return int(most) if most < characters else None


def plan_valid_characters(
    settings: Settings,
    *,
    characters: int,
    device: str,
    characters_per_token: float,
) -> int | None:
    """How much of `characters` of held-out text to validate on, at most; None: all of it.

    The time must not go by in validations. A budget in epochs alone means all of it here too.
    """
    if settings.valid_characters:
        return settings.valid_characters
    # Scoring a token takes a third of the time of training on it.
    tokens = max(LEAST_VALIDATED, 3 * VALIDATION_SHARE * _tokens(settings, device))
    most = tokens * characters_per_token
    return int(most) if most < characters else None


def test_seconds(settings: Settings, size: int) -> float | None:
    """The least that a test text of `size` bytes takes, where that is more than the budget's share.

    Known before it is read; what a smaller one takes is measured. None: it can be tried.
    """
    seconds = size / TEST_SPEED
    return seconds if settings.minutes and seconds > TEST_SHARE * 60 * settings.minutes else None


def _tokens(settings: Settings, device: str) -> float:
    """Training tokens that the budget will see, roughly; no limit where it is in epochs alone.

    Of minutes, those that a model of the size for them sees: weights x tokens = speed x time, and
    tokens = TOKENS_PER_WEIGHT x weights.
    """
    limits = [math.inf]
    if settings.minutes:
        products = settings.minutes * 60 * WEIGHTS_PER_SECOND[device]
        limits.append(math.sqrt(products * TOKENS_PER_WEIGHT))
    if settings.steps:
        streams = settings.batch or (STREAMS_TIED if settings.minutes else STREAMS)[device]
        limits.append(settings.steps * streams * (settings.bptt or BPTT))
    if settings.tokens:
        limits.append(settings.tokens)
    return min(limits)
