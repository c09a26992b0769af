"""The exception hierarchy: every error a user can meet, with its exit code.

    GruLmError                    (never raised itself)
    ├── UsageError            2   invalid options or configuration
    │   └── BudgetError           a budget in minutes too short for a single training step
    ├── InputError            3   unusable text, run, checkpoint or tokenizer
    ├── DivergedError         4   non-finite loss or gradient during training
    ├── EnvironmentProblem    5   disk full, run in use, out of memory, device or package missing
    └── Stopped         128 + n   terminated by signal n

Each error carries a message (what and where), an optional `why` and an optional `hint` (the command or
change that fixes it). Printing is left to the command line. A failed `assert` is our own bug (exit 70).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class GruLmError(Exception):
    """Base class of all errors that a user can cause or fix."""

    exit_code = 70

    def __init__(self, message: str, *, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint


class UsageError(GruLmError):
    """Invalid options or configuration."""

    exit_code = 2


class BudgetError(UsageError):
    """A budget in minutes that was used up, or reserved for the end, before the first step."""


class InputError(GruLmError):
    """Unusable text, run directory, checkpoint or tokenizer."""

    exit_code = 3


class DivergedError(GruLmError):
    """Non-finite loss or gradient."""

    exit_code = 4


class EnvironmentProblem(GruLmError):
    """Problem with the machine: disk, memory, device, lock or a missing package."""

    exit_code = 5


class Stopped(GruLmError):
    """Interrupted by signal `signum`, which sets the exit code; `result` holds the partial result."""

    result: dict[str, Any] | None = None

    def __init__(self, signum: int, message: str = "stopped", *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signum = signum
        self.exit_code = 128 + signum


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Return a UsageError for `name` whose hint suggests the nearest known name.

    >>> unknown_name("cell", "gruu", ["gru", "lstm"]).hint
    'did you mean gru? known: gru, lstm'
    """
    names = list(known)
    near = nearest(name, names)
    hint = f"did you mean {near}? known: " if near else "known: "
    return UsageError(f"unknown {what} {name!r}", hint=hint + ", ".join(names))
