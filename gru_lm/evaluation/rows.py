"""Table rows as tab-separated values, CSV or JSON Lines, selected by the file name's suffix.

All formats have the same values. Strings are already escaped (text/tokenizer.py), so that a row is one
line. TSV has no quoting; CSV quotes all strings and no numbers. Independent of the columns' meaning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import BinaryIO

Value = str | int | float


class Rows:
    """Writes a table's header, then its rows. `form` is the suffix of the file name."""

    def __init__(self, file: BinaryIO, columns: str, form: str) -> None:
        self._file = file
        self._columns = columns.split()
        lines: dict[str, Callable[[Iterable[Value]], str]] = {
            ".tsv": lambda row: "\t".join(map(_plain, row)),
            ".csv": lambda row: ",".join(map(_quoted, row)),
            ".jsonl": self._object,
        }
        self._line = lines[form]
        if form != ".jsonl":
            file.write({".tsv": "\t", ".csv": ","}[form].join(self._columns).encode() + b"\n")

    def write(self, rows: Iterable[Iterable[Value]]) -> None:
        text = "".join(f"{self._line(row)}\n" for row in rows)
        self._file.write(text.encode(errors="backslashreplace"))

    def _object(self, row: Iterable[Value]) -> str:
        values = (
            value
            if not isinstance(value, float)
            else float(_plain(value))
            if math.isfinite(value)
            else None  # JSON has no infinity
            for value in row
        )
        return json.dumps(dict(zip(self._columns, values, strict=True)), ensure_ascii=False)


def _plain(value: Value) -> str:
    # Nine digits represent every float32 exactly.
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _quoted(value: Value) -> str:
    if isinstance(value, str):
        doubled = value.replace('"', '""')
        return f'"{doubled}"'
    return _plain(value)
