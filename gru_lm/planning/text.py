"""What is planned before a text is tokenized: by what, and how much of it.

    tokenizer   char up to 5 M characters, bpe beyond: a subword sees further per step
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
LEAST_VALIDATED = 300_000  # tokens
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
