"""The setting --pieces: pieces that stay whole, as a list separated by commas or as a file.

A list is one row of CSV, so that a piece may hold a comma or a quotation mark. A file has one piece on
each line. Knows nothing of tokenizers. Invariant: `listed(spelled(pieces)) == pieces`, and `read` never
takes the result of `spelled` for the name of a file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from gru_lm.errors import InputError, UsageError

SPACE_SIGN = "\u2581"  # stands for a space in SentencePiece, so it cannot be part of a piece
MOST_PIECES = 32_768
LONGEST_PIECE = 256  # characters
LARGEST_FILE = 2**20  # bytes
_SUFFIX = ".txt"  # a name that ends so is that of a file, even if there is none


def listed(text: str) -> tuple[str, ...]:
    r"""The distinct pieces of a list, in order. Raises ValueError if it is malformed.

    >>> listed('Cl,Br,",",<title>')
    ('Cl', 'Br', ',', '<title>')
    """
    try:
        pieces = next(csv.reader([text], strict=True), []) or [""]
    except csv.Error as error:
        raise ValueError(
            'a piece that begins with " or holds a comma is put in quotation marks, and " within them '
            "is doubled"
        ) from error
    for number, piece in enumerate(pieces, 1):
        if fault := _fault(piece):
            raise ValueError(f"piece {number} {fault}")
    return _distinct(pieces)


def spelled(pieces: Iterable[str]) -> str:
    """The list of `pieces`, as it is recorded; "" if there are none."""
    pieces = list(pieces)
    text = _row(pieces, csv.QUOTE_MINIMAL)
    # In quotation marks it is not the name of a file.
    return _row(pieces, csv.QUOTE_ALL) if len(pieces) == 1 or text.endswith(_SUFFIX) else text


def _row(pieces: list[str], quoting: int) -> str:
    row = io.StringIO()
    if pieces:
        csv.writer(row, quoting=quoting, lineterminator="").writerow(pieces)  # type: ignore[arg-type]
    return row.getvalue()


def read(setting: str) -> tuple[str, ...]:
    """The distinct pieces of the setting, a list or the name of a file, in order.

    Raises UsageError for a malformed list, InputError for a file that is missing or malformed.
    """
    if setting.endswith(_SUFFIX) or _is_file(Path(setting)):
        return _from_file(Path(setting))
    try:
        return listed(setting)
    except ValueError as error:
        raise UsageError(
            f"--pieces {setting[:80]} is not a list of pieces",
            why=str(error),
            hint="--pieces 'Cl,Br,@@', or --pieces FILE with one piece on each line",
        ) from error


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # too long for a name
        return False


def _from_file(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read the pieces in {path}: {error.strerror}",
            hint="--pieces FILE with one piece on each line, or --pieces 'Cl,Br,@@'",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: the pieces are not UTF-8",
            why=str(error),
            hint=f"iconv -f latin1 -t utf-8 {path} > pieces.txt",
        ) from error
    if len(data) > LARGEST_FILE:
        raise InputError(
            f"{path} is larger than {LARGEST_FILE:,} bytes",
            hint="--pieces FILE with one piece on each line",
        )
    lines = text.removesuffix("\n").split("\n")
    pieces = [line.removesuffix("\r") for line in lines]
    for number, piece in enumerate(pieces, 1):
        if fault := _fault(piece):
            raise InputError(f"{path}, line {number}: the piece {fault}", hint="correct the file")
    try:
        return _distinct(pieces)
    except ValueError as error:
        raise InputError(f"{path}: {error}", hint="leave some out") from error


def _distinct(pieces: Iterable[str]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(pieces))
    if len(distinct) > MOST_PIECES:
        raise ValueError(f"{len(distinct):,} pieces; at most {MOST_PIECES:,} are supported")
    return distinct


def _fault(piece: str) -> str | None:
    """What is wrong with a piece; None if it can be used."""
    if not piece:
        return "is empty"
    if len(piece) > LONGEST_PIECE:
        return f"is longer than {LONGEST_PIECE} characters"
    if SPACE_SIGN in piece:
        return f"contains {SPACE_SIGN}, SentencePiece's sign for a space: write a space instead"
    odd = next((character for character in piece if not character.isprintable()), None)
    return odd and f"contains the unprintable character U+{ord(odd):04X}"
