"""The columns of a table that are read: looked up by name, and made blocks of records.

Independent of the formats of tables. Invariant: a block has records that are not empty, of bounded size,
and a cell of each column for each.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from gru_lm.errors import InputError, nearest
from gru_lm.text import files
from gru_lm.text.documents import Document
from gru_lm.text.records import MOST_CHARACTERS, Block, place_of, too_long

MOST_LISTED = 50  # fields in an error
_KINDS = {bool: "true or false", list: "a list", dict: "an object"}


class Columns:
    """The column of the records and those asked for with it."""

    def __init__(self, document: Document, field: str, others: Sequence[str]) -> None:
        self.document, self.field, self.others = document, field, others

    def cells(self) -> dict[str, list[str]]:
        """An empty column for each, to be filled."""
        return {name: [] for name in (self.field, *self.others)}

    def check(self, known: Sequence[str]) -> None:
        """Raise InputError if a column is not among those `known`, or more than once."""
        for name in self.cells():
            if name not in known:
                raise self.unknown(name, known)
            if known.count(name) > 1:
                raise InputError(
                    f"{self._spoken}: {known.count(name)} columns are named {name!r}",
                    hint="rename all but one of them",
                )

    def unknown(self, name: str, known: Iterable[str]) -> InputError:
        """The error for a column that the table does not have, with those that it has."""
        names = list(dict.fromkeys(known))
        near = nearest(name, names)
        listed = ", ".join(map(repr, names[:MOST_LISTED])) or "none"
        if len(names) > MOST_LISTED:
            listed += f" and {len(names) - MOST_LISTED:,} more"
        hint = (f"did you mean {near!r}? " if near else "") + f"its fields: {listed}"
        return InputError(f"{self._spoken} has no field {name!r}", hint=hint)

    def text(self, name: str, value: Any, line: int) -> str:
        """A value as text: nothing as "", and what JSON has, except strings, as in JSON.

        Raises InputError if it is in the column of the records, and neither text nor a number.
        """
        if value is None:
            return ""
        is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        if name == self.field and not (is_number or isinstance(value, str)):
            what = _KINDS.get(type(value), f"of type {type(value).__name__}")
            raise InputError(
                f"{place_of(self.document, line)}: {name!r} is {what}",
                hint="a record is text or a number: name another field with --field",
            )
        if isinstance(value, bool | int | float | list | dict):
            return json.dumps(value, ensure_ascii=False, default=str)
        return str(value)

    def block(self, cells: dict[str, list[str]], lines: list[int], blank: int = 0) -> Block:
        """The rows on `lines`, without those whose record is empty, of which there are `blank` more.

        Raises InputError for a record that is too long, and for cells that no encoding can hold.
        """
        texts = cells[self.field]
        if max(map(len, texts), default=0) > MOST_CHARACTERS:
            at = next(at for at, text in enumerate(texts) if len(text) > MOST_CHARACTERS)
            raise too_long(self.document, lines[at], in_table=True)
        for column in cells.values():
            self._check_characters(column, lines)
        kept = [bool(text) and not text.isspace() for text in texts]
        if not all(kept):
            cells = {name: list(itertools.compress(cells[name], kept)) for name in cells}
            lines = list(itertools.compress(lines, kept))
        asked = {name: cells[name] for name in self.others}
        return Block(cells[self.field], lines, asked, blank + len(texts) - len(lines))

    def _check_characters(self, column: list[str], lines: list[int]) -> None:
        try:
            "".join(column).encode()
        except UnicodeEncodeError:
            at = next(at for at, text in enumerate(column) if _is_broken(text))
            raise InputError(
                f"{place_of(self.document, lines[at])}: half of a surrogate pair, not a character",
                hint="write the file again with whole characters",
            ) from None

    @property
    def _spoken(self) -> str:
        return files.spoken(self.document.name)


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
