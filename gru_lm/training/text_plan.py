"""What is planned before a text is tokenized: by what, and how much of it.

    tokenizer   char up to 5 M characters, bpe beyond: a subword sees further per step
    characters  what the budget can use of a large text, with a margin
    held out    what can be scored in a small part of the time

Knows no files and no models; what a budget buys is the planner's to say.
"""

from __future__ import annotations

import math

from gru_lm.config import Settings
from gru_lm.errors import InputError
from gru_lm.training.planner import BPTT, STREAMS, TOKENS_PER_WEIGHT, WEIGHTS_PER_SECOND

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
LEAST_VALIDATED = 1_500_000
VALIDATION_SHARE = 0.02  # of a budget in minutes, for one validation


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

    A budget in epochs means the whole text.
    """
    if settings.characters or settings.epochs:
        return settings.characters
    tokens: list[float] = [characters]  # no text has more tokens that are worth counting
    if settings.minutes:
        tokens.append(_tokens_in(settings.minutes, device))
    if settings.steps:
        streams = settings.batch or STREAMS[device]
        tokens.append(settings.steps * streams * (settings.bptt or BPTT))
    if settings.tokens:
        tokens.append(settings.tokens)
    most = max(LEAST_USED, MARGIN * min(tokens) * characters_per_token)
    return int(most) if most < characters else None


def plan_valid_characters(
    settings: Settings,
    *,
    characters: int,
    device: str,
    characters_per_token: float,
) -> int | None:
    """How much of `characters` of held-out text to validate on, at most; None: all of it.

    A budget in minutes must not go by in validations; other budgets do not count them.
    """
    if settings.valid_characters or not settings.minutes:
        return settings.valid_characters
    # Scoring a token takes a third of the time of training on it.
    tokens = 3 * VALIDATION_SHARE * _tokens_in(settings.minutes, device)
    most = max(LEAST_VALIDATED, tokens * characters_per_token)
    return int(most) if most < characters else None


def _tokens_in(minutes: float, device: str) -> float:
    """Tokens that a model of the size for so many minutes sees, roughly.

    weights x tokens = speed x time, and tokens = TOKENS_PER_WEIGHT x weights.
    """
    return math.sqrt(minutes * 60 * WEIGHTS_PER_SECOND[device] * TOKENS_PER_WEIGHT)
