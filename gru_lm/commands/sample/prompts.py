"""Prompts of `sample`: from an option, from standard input, or one a line from a file.

Knows no model. Invariant: a prompt can be printed.
"""

from __future__ import annotations

import select
import sys
import time

from gru_lm.errors import InputError, UsageError
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.records import LINE, ROW, Form
from gru_lm.text.sources import open_documents, stdin_blocks

PATIENCE = 2.0  # seconds to wait for a piped prompt before a note is printed


def given_prompt(prompt: str | None, form: Form | None, *, stop: Stop) -> str:
    """The prompt of --prompt, else of standard input, if piped; for records of the given form, if any.

    The last line break of a piped one is no part of a record that is a line or a row. Raises UsageError
    for any other line break in the prompt of a line.
    """
    text = _piped(stop) if prompt is None else prompt
    # Bytes of an argument that are not UTF-8 cannot be printed: replace them.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if form is None:
        return text
    if prompt is None and form.unit in (LINE, ROW):
        text = text.removesuffix("\n").removesuffix("\r")
    if form.unit == LINE and "\n" in text:
        raise UsageError(
            "the prompt has several lines, but each record of this run is one line",
            hint="--prompts FILE, or --prompts - for standard input: one beginning a line",
        )
    return text


def read_prompts(spec: str, *, stop: Stop) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for "-"; an empty line is the empty prompt.

    Raises InputError if it is missing, unreadable, not text, or empty.
    """
    if spec == "-":
        text = _decoded(b"".join(stdin_blocks(stop=stop)), "standard input").removeprefix("\ufeff")
    else:
        documents = open_documents([spec], stop=stop)
        text = "".join(piece for document in documents for piece in document.pieces())
    if not text:
        raise InputError("no prompts on standard input", hint="one beginning a line")
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def _piped(stop: Stop) -> str:
    """Read standard input unless it is a terminal or closed."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    due = time.monotonic() + PATIENCE
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        stop()
        if time.monotonic() >= due:
            console.note('reading the prompt from standard input (--prompt "" for none)')
            break
    return _decoded(b"".join(stdin_blocks(stop=stop)), "the prompt on standard input")


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not utf-8 at byte {error.start:,}", hint="iconv -t utf-8"
        ) from error
