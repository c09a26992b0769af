"""Rows of a table as tab-separated values, as CSV or as JSON Lines, by the ending of its file's name.

The values are the same in each; texts come escaped (text/tokenizer.py), so that a row is a line. TSV has
no quoting at all, CSV quotes every text and no number. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import BinaryIO

Value = str | int | float


class Rows:
    """Writes the rows of a table, its header first. `form` is the ending of its file's name."""

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
            else None  # JSON knows no infinity
            for value in row
        )
        return json.dumps(dict(zip(self._columns, values, strict=True)), ensure_ascii=False)


def _plain(value: Value) -> str:
    # Nine digits hold every float32.
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _quoted(value: Value) -> str:
    if isinstance(value, str):
        doubled = value.replace('"', '""')
        return f'"{doubled}"'
    return _plain(value)
