"""Canonical form of setting values, by which the settings of runs are compared.

Independent of particular settings. Invariant: values that pass survive a round trip through config.toml.
"""

from __future__ import annotations

import codecs
import re
from fractions import Fraction

from gru_lm.errors import UsageError

# A number or a ratio; longer exponents would exhaust memory.
SHARE = re.compile(r"[0-9.]{1,20}(e-?[0-9]{1,2})?(/[0-9]{1,20})?", re.ASCII)


def decimal(share: Fraction) -> str:
    """The shortest decimal equal to `share`, or a ratio if there is none."""
    text = f"{float(share):.15g}"
    return text if Fraction(text) == share else str(share)


def codec(encoding: str) -> str:
    """The canonical name of a codec; unknown names are returned unchanged and rejected when used."""
    try:
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        return encoding


def check_text(flag: str, text: str, *, is_path: bool) -> None:
    """Raise UsageError for a string that cannot be stored in config.toml or a checkpoint."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    if shown != text:
        raise UsageError(
            f"the name {shown} is not UTF-8 and cannot be recorded",
            hint="rename it, or link to it: ln -s OLD NEW",
        )
    if not (is_path or text.isprintable()):
        raise UsageError(f"{flag} {text!r} contains unprintable characters")
