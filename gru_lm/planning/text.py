"""Planning before tokenization: the tokenizer, and how much of the text to use.

    tokenizer   char up to 5 M characters and for short records, bpe beyond, whose steps span more text;
                bpe and unigram are trained on a sample that takes a small part of a budget in minutes
    characters  as much of a large text as the budget can use, with a margin
    held out    as much as can be scored in a small part of the training time

Opens no files and builds no models.
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

LEAST_CHARACTERS = 100  # of training text
MOST_CHARACTERS_FOR_CHAR = 5_000_000
SHORT_RECORD = 64  # characters on average, up to which records of any number are read by characters
CHARACTERS_PER_TOKEN = {
    "char": 1.0,
    "byte": 1.0,
    "bpe": 5.0,
    "unigram": 5.0,
    "word": 7.0,
}  # at most
MARGIN = 1.2  # factor of text beyond the needs of the budget
# Characters used with any budget: vocabulary and model size depend on them, and reading takes a second.
LEAST_USED = 5_000_000
# Share of a budget in minutes for training the tokenizer; after LONGEST_SHARE, a smaller sample is used.
TOKENIZER_SHARE, LONGEST_SHARE = 0.05, 0.1
# Training speed of SentencePiece per second of sampled text; a lower bound for prose and code, one core.
TRAINED_PER_SECOND = {"bpe": 1_000_000, "unigram": 200_000}  # characters
LEAST_SAMPLED = 100_000  # characters
LEAST_VALIDATED = 300_000  # tokens
TEST_SHARE = 0.2  # of a budget in minutes, for the test text, at most
# Bytes of test text per second: 9 MB/s for reading and tokenizing, 11 for scoring with a small model.
TEST_SPEED = 5e6
VALIDATION_SHARE = 0.02  # of the training time, per validation


def plan_tokenizer(settings: Settings, *, characters: int, records: int | None = None) -> str:
    """The kind of tokenizer for a training text of `characters`, in `records` if it is a list.

    Raises InputError if it is too short.
    """
    if characters < LEAST_CHARACTERS:
        raise InputError(
            f"the training text is too short: {characters} characters",
            why=f"at least {LEAST_CHARACTERS} are needed after the split {settings.split}",
            hint="add text, or train on @docstrings",
        )
    is_short = records is not None and characters <= SHORT_RECORD * records
    for_char = is_short or characters <= MOST_CHARACTERS_FOR_CHAR
    return settings.tokenizer or ("char" if for_char else "bpe")


def plan_sample(settings: Settings, kind: str, *, characters: int) -> tuple[int | None, int]:
    """Characters, of `characters` of training text, to train a tokenizer on (None: all), and a minimum.

    The sample may be reduced to the minimum if training takes longer than LONGEST_SHARE of the budget.
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
    """How many of `characters` of training text the budget can use; None: all of them.

    A budget in epochs alone uses the whole text.
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
    """How many of `characters` of held-out text to validate on; None: all of them.

    Limits the time of a validation. A budget in epochs alone uses the whole text.
    """
    if settings.valid_characters:
        return settings.valid_characters
    # Scoring takes a third of the time of training per token.
    tokens = max(LEAST_VALIDATED, 3 * VALIDATION_SHARE * _tokens(settings, device))
    most = tokens * characters_per_token
    return int(most) if most < characters else None


def test_seconds(settings: Settings, size: int) -> float | None:
    """Minimum seconds for a test text of `size` bytes, if that exceeds its share of the budget.

    None: it may fit; its time is then measured. Needs no reading of the text.
    """
    seconds = size / TEST_SPEED
    return seconds if settings.minutes and seconds > TEST_SHARE * 60 * settings.minutes else None


def _tokens(settings: Settings, device: str) -> float:
    """Rough number of training tokens within the budget; infinite for a budget in epochs alone.

    For minutes, those of a model of the right size: weights x tokens = speed x time and
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
