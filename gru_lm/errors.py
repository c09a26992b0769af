"""The exception tree: what can go wrong for a user, each with its exit code.

    GruLmError                    (never raised itself)
    ├── UsageError            2   wrong options or configuration
    │   └── BudgetError           a budget in minutes that no training step fits into
    ├── InputError            3   a text, run, checkpoint or tokenizer that cannot be used
    ├── DivergedError         4   training left the finite numbers
    ├── EnvironmentProblem    5   disk full, run in use, out of memory, device or package missing
    └── Stopped         128 + n   a signal asked us to leave

Every instance is a message (what and where), an optional `why`, and a `hint`: the command or change
that mends it. Printing is the command line's business. `assert` means our own bug (exit 70).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class GruLmError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 70

    def __init__(self, message: str, *, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint


class UsageError(GruLmError):
    """Wrong options or configuration."""

    exit_code = 2


class BudgetError(UsageError):
    """A budget in minutes that was used up, or reserved for the end, before the first step."""


class InputError(GruLmError):
    """A text, run directory, checkpoint or tokenizer that cannot be used."""

    exit_code = 3


class DivergedError(GruLmError):
    """A loss or gradient that is not finite."""

    exit_code = 4


class EnvironmentProblem(GruLmError):
    """The machine said no: disk, memory, device, lock, missing package."""

    exit_code = 5


class Stopped(GruLmError):
    """Work was ended by a signal; `signum` decides the exit code, `result` is what was reached."""

    result: dict[str, Any] | None = None

    def __init__(self, signum: int, message: str = "stopped", *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signum = signum
        self.exit_code = 128 + signum


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """A UsageError for `name`, hinting at the nearest of the known names.

    >>> unknown_name("cell", "gruu", ["gru", "lstm"]).hint
    'did you mean gru? known: gru, lstm'
    """
    names = list(known)
    near = nearest(name, names)
    hint = f"did you mean {near}? known: " if near else "known: "
    return UsageError(f"unknown {what} {name!r}", hint=hint + ", ".join(names))
