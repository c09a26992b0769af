"""The canonical spelling of settings: runs are resumed and compared by their settings.

Knows no setting in particular. Invariant: what passes here can be written to config.toml and read back.
"""

from __future__ import annotations

import codecs
import re
from fractions import Fraction

from gru_lm.errors import UsageError

# A number or a ratio; a longer exponent would exhaust memory.
SHARE = re.compile(r"[0-9.]{1,20}(e-?[0-9]{1,2})?(/[0-9]{1,20})?", re.ASCII)


def decimal(share: Fraction) -> str:
    """The shortest decimal that is `share`, or a ratio where there is none."""
    text = f"{float(share):.15g}"
    return text if Fraction(text) == share else str(share)


def codec(encoding: str) -> str:
    """The canonical name of the codec; an unknown one is refused where it is used."""
    try:
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        return encoding


def check_text(flag: str, text: str, *, is_path: bool) -> None:
    """Raise UsageError for a string that config.toml or a checkpoint could not hold."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    if shown != text:
        raise UsageError(
            f"the name {shown} is not UTF-8, and cannot be recorded",
            hint="rename it, or link to it under another name: ln -s OLD NEW",
        )
    if not (is_path or text.isprintable()):
        raise UsageError(f"{flag} {text!r} holds characters that cannot be printed")
