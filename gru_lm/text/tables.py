"""Tables: which format a file has, and the rows of CSV, TSV and JSON Lines as records.

Cells are read as text, unchanged: those of CSV and TSV as the csv module and pandas write them, with
line breaks in quotes and quotes doubled; numbers of JSON as Python writes them. Parquet is the matter of
parquet.py.
Invariant: a row of CSV or TSV has a cell for each column, or an error names its line.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gru_lm import layout
from gru_lm.errors import InputError
from gru_lm.text import files
from gru_lm.text.columns import Columns
from gru_lm.text.documents import Document
from gru_lm.text.records import BLOCK, MOST_CHARACTERS, Block, blocks_of_lines, place_of

CSV, TSV, JSON_LINES, PARQUET = "CSV", "TSV", "JSON Lines", "Parquet"
FORMATS = {
    ".csv": CSV,
    ".tsv": TSV,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".parquet": PARQUET,
}
MOST_IN_A_LINE = 10 * MOST_CHARACTERS  # of JSON, or in any cell, read or not
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def format_of(name: str) -> str | None:
    """The format of a table by its file name, with or without a suffix of compression; else None."""
    path = Path(name)
    if path.suffix.lower() not in files.PACKED:
        return FORMATS.get(path.suffix.lower())
    found = FORMATS.get(Path(path.stem).suffix.lower())
    return None if found == PARQUET else found


def not_a_table(name: str) -> InputError:
    """The error for a file whose name is not that of a table."""
    hint = (
        f"runs with --field read {', '.join(FORMATS)}; for other lists, train with --records line"
    )
    return files.NotTextError(f"{name}: not a table, by its name", hint=hint)


def read_rows(document: Document, field: str, columns: Sequence[str]) -> Iterator[Block]:
    """A record for each row of a table: its cell in the column `field`, with those in `columns`.

    The format is that of the name; standard input, or a run's copy of it, is JSON Lines if it begins
    with {, TSV if its first line has a tab, else CSV. The separator of CSV is the first of , ; and tab
    that its header has.
    Blank lines, and objects without the field, are empty records. Raises InputError for a name that is
    not that of a table, a column that is missing or ambiguous, and, with the line, for a row that cannot
    be parsed or has another width than the header, a value that is neither text nor a number, and a
    record of more than MOST_CHARACTERS; EnvironmentProblem if the package for Parquet is missing.
    """
    wanted = Columns(document, field, columns)
    kind = piped_format(document) if is_piped(document.name) else format_of(document.name)
    if kind is None:
        raise not_a_table(document.name)
    if kind == PARQUET:
        from gru_lm.text.parquet import read_parquet

        return read_parquet(document, wanted)
    if kind == JSON_LINES:
        return _objects(document, wanted)
    return _cells(document, wanted, tabs=kind == TSV)


def is_piped(name: str) -> bool:
    """Whether a document is standard input, or a run's copy of it, whose name says nothing."""
    return name == "-" or layout.is_piped_text(Path(name))


def piped_format(document: Document) -> str:
    """The format of a table from standard input, one of the formats of text."""
    first = _first_line(document)
    return JSON_LINES if first.startswith("{") else TSV if "\t" in first else CSV


def _first_line(document: Document) -> str:
    for _, lines in blocks_of_lines(document, most=MOST_IN_A_LINE):
        for line in lines:
            if line and not line.isspace():
                return line.lstrip()
    return ""


def _cells(document: Document, wanted: Columns, *, tabs: bool) -> Iterator[Block]:
    # The limit is that of the whole process, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_IN_A_LINE))
    physical = _physical_lines(document)
    before = 0  # blank lines before the header
    header = ""
    for header in physical:
        if not header.isspace():
            break
        before += 1
    delimiter = "\t" if tabs else _separator(header, wanted.field)
    reader = csv.reader(itertools.chain([header], physical), delimiter=delimiter, strict=True)
    start, end = 0, before
    cells, lines = wanted.cells(), []
    blank = characters = 0
    try:
        names = next(reader)
        wanted.check(names)
        picks = [(names.index(name), name) for name in cells]
        end = before + reader.line_num
        for row in reader:
            start, end = end + 1, before + reader.line_num
            if len(row) != len(names):
                if "".join(row).strip():
                    raise _wrong_width(document, start, len(row), len(names))
                blank += 1
                continue
            lines.append(start)
            for index, name in picks:
                cells[name].append(row[index])
                characters += len(row[index])
            if characters + len(lines) > BLOCK:
                yield wanted.block(cells, lines, blank)
                cells, lines = wanted.cells(), []
                blank = characters = 0
    except csv.Error as error:
        raise _unparsed(document, error, end + 1, before + reader.line_num, delimiter) from error
    yield wanted.block(cells, lines, blank)


def _physical_lines(document: Document) -> Iterator[str]:
    for first, lines in blocks_of_lines(document, most=MOST_IN_A_LINE, as_written=True):
        for number, line in enumerate(lines, first):
            if "\0" in line:
                raise InputError(
                    f"{place_of(document, number)}: a NUL character",
                    hint="write the table again; if it is UTF-16: --encoding utf-16",
                )
            yield line + "\n"


def _separator(header: str, field: str) -> str:
    """The first of the separators in a header, unless the header is the name of the only column."""
    if header.strip().strip('"') == field:
        return ","
    bare = _QUOTED.sub("", header)
    return next((each for each in ",;\t" if each in bare), ",")


def _wrong_width(document: Document, line: int, found: int, expected: int) -> InputError:
    cells, columns = _counted(found, "cell"), _counted(expected, "column")
    return InputError(
        f"{place_of(document, line)}: a row of {cells} in a table of {columns}",
        hint='put cells with separators or line breaks into quotes: "..."',
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _unparsed(
    document: Document, error: csv.Error, start: int, line: int, delimiter: str
) -> InputError:
    """The error for what the csv module does not accept, in the row from line `start` to `line`."""
    why, hint = str(error), 'double the quotes inside a cell: "say ""hello"""'
    if "unexpected end" in why:
        line, what = _open_quote(document, start, delimiter), "this quote is never closed"
    elif "field limit" in why:
        line, what = start, f"a cell of more than {MOST_IN_A_LINE:,} characters"
        hint = "close its quote, if it has one"
    elif "new-line" in why:
        what = "a carriage return outside quotes"
        hint = 'end lines with a line feed: tr "\\r" "\\n"'
    else:
        what = "a quoted cell goes on after its quote"
    return InputError(f"{place_of(document, line)}: {what}", hint=hint)


def _open_quote(document: Document, start: int, delimiter: str) -> int:
    """The line of the quote that is still open at the end, in the row that begins on line `start`."""
    rest = itertools.islice(_physical_lines(document), start - 1, None)
    reader = csv.reader(rest, delimiter=delimiter)  # not strict: it closes the quote
    cell = ""
    for row in reader:
        cell = row[-1]
    return start + reader.line_num - cell.count("\n")


def _objects(document: Document, wanted: Columns) -> Iterator[Block]:
    found: set[str] = set()
    others: dict[str, dict[str, None]] = {name: {} for name in wanted.cells()}  # fields beside it
    for first, physical in blocks_of_lines(document, most=MOST_IN_A_LINE):
        cells, lines = wanted.cells(), []
        blank = 0
        for number, line in enumerate(physical, first):
            if not line or line.isspace():
                blank += 1
                continue
            row = _object(document, number, line)
            lines.append(number)
            for name, column in cells.items():
                value = row.get(name)
                column.append(value if isinstance(value, str) else wanted.text(name, value, number))
                if name not in found:
                    if name in row:
                        found.add(name)
                    others[name].update(dict.fromkeys(row))
        yield wanted.block(cells, lines, blank)
    for name, beside in others.items():
        if name not in found:
            raise wanted.unknown(name, beside)


def _object(document: Document, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place_of(document, number)}: not JSON",
            why=str(error),
            hint="JSON Lines have an object on each line; of a JSON array: jq -c '.[]'",
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{place_of(document, number)}: not a JSON object",
            hint='for example {"text": "..."}; of a JSON array: jq -c \'.[]\'',
        )
    return row
