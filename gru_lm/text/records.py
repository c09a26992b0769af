r"""Records: the lines, paragraphs or files of a list, or the rows of a table.

A record is a document of its own; the records of a list have no order. They are read in blocks, in
constant memory. Independent of models and tokens; the formats of tables are in tables.py. Invariant: no
record is empty, and the line ends of a file, \n or \r\n, do not matter outside the cells of tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gru_lm.errors import InputError
from gru_lm.text import files
from gru_lm.text.documents import Document

LINE, PARAGRAPH, FILE, ROW = UNITS = ("line", "paragraph", "file", "row")
MOST_CHARACTERS = 1_000_000  # of a record, except a file
BLOCK = 1 << 19  # characters read before they are split


@dataclass(frozen=True, kw_only=True)
class Form:
    """How records are found in files."""

    unit: str  # one of UNITS
    field: str | None = None  # of a row: the name of the column with the text
    group: str | None = None  # of a row: the name of a column that is not split

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Form | None:
        """The form in settings, as in a checkpoint; None for running text."""
        unit, field = config.get("records"), config.get("field")
        if field is not None:
            return cls(unit=ROW, field=field, group=config.get("group"))
        return None if unit in (None, "none") else cls(unit=unit)


class Block(NamedTuple):
    """Consecutive records of a document, none of them empty."""

    texts: list[str]
    lines: list[int]  # on which each begins in its file, from 1; in Parquet, its row
    columns: dict[str, list[str]]  # the columns asked for: a value for each record
    empty: int  # empty records among them, which are left out

    @property
    def text(self) -> str:
        """The records as text: each is followed by a newline, which is its end."""
        return "".join(f"{text}\n" for text in self.texts)


def read_records(document: Document, form: Form, *, columns: Sequence[str] = ()) -> Iterator[Block]:
    r"""The records of a document, in blocks.

    - line: each line without its end, \n or \r\n.
    - paragraph: lines that follow each other without a blank one, joined by \n.
    - file: the document, with \n for line ends and without the last of them.
    - row: the cells of the column `form.field`, unchanged; with each, those of `columns`.

    Records of white space alone are empty. Raises InputError for a record of more than MOST_CHARACTERS
    (except a file), the errors of tables.read_rows for a table, and those of `document.pieces`.
    """
    if form.unit == ROW:
        from gru_lm.text.tables import read_rows

        assert form.field is not None
        return read_rows(document, form.field, columns)
    assert not columns, "only tables have columns"
    if form.unit == LINE:
        return _lines(document)
    return _paragraphs(document) if form.unit == PARAGRAPH else _file(document)


def _lines(document: Document) -> Iterator[Block]:
    for first, lines in blocks_of_lines(document):
        texts = [line for line in lines if line and not line.isspace()]
        if len(texts) == len(lines):
            numbers = list(range(first, first + len(lines)))
        else:
            numbers = [n for n, line in enumerate(lines, first) if line and not line.isspace()]
        yield Block(texts, numbers, {}, len(lines) - len(texts))


def _paragraphs(document: Document) -> Iterator[Block]:
    texts: list[str] = []
    starts: list[int] = []
    open_lines: list[str] = []  # of the paragraph that is being read
    start = characters = 0
    for first, lines in blocks_of_lines(document):
        for number, line in enumerate(lines, first):
            if line and not line.isspace():
                if not open_lines:
                    start, characters = number, -1
                characters += 1 + len(line)
                if characters > MOST_CHARACTERS:
                    raise too_long(document, start)
                open_lines.append(line)
            elif open_lines:
                texts.append("\n".join(open_lines))
                starts.append(start)
                open_lines = []
        if texts:
            yield Block(texts, starts, {}, 0)
            texts, starts = [], []
    if open_lines:
        yield Block(["\n".join(open_lines)], [start], {}, 0)


def _file(document: Document) -> Iterator[Block]:
    text = "".join(document.pieces()).replace("\r\n", "\n").removesuffix("\n")
    if text and not text.isspace():
        yield Block([text], [1], {}, 0)
    else:
        yield Block([], [], {}, 1)


def blocks_of_lines(
    document: Document, *, most: int = MOST_CHARACTERS, as_written: bool = False
) -> Iterator[tuple[int, list[str]]]:
    r"""Blocks of lines without their ends: the number of the first, from 1, and the lines.

    A \r before \n belongs to the end, except `as_written`. Raises InputError for a line of more than
    `most` characters, which is at least BLOCK.
    """
    number, tail = 1, ""
    for block in _blocks(document):
        text = tail + block
        if not as_written and "\r" in text:
            text = text.replace("\r\n", "\n")
        lines = text.split("\n")
        tail = lines.pop()
        # Any line but the first, which the tail began, is shorter than a block.
        if len(lines[0] if lines else tail) > most:
            raise too_long(document, number, most, in_table=most != MOST_CHARACTERS)
        if lines:
            yield number, lines
            number += len(lines)
    if tail:
        yield number, [tail if as_written else tail.removesuffix("\r")]


def _blocks(document: Document) -> Iterator[str]:
    pieces: list[str] = []
    characters = 0
    for piece in document.pieces():
        pieces.append(piece)
        characters += len(piece)
        if characters >= BLOCK:
            yield "".join(pieces)
            pieces, characters = [], 0
    if pieces:
        yield "".join(pieces)


def place_of(document: Document, line: int) -> str:
    """A line of a document, or a row of Parquet, as in messages."""
    what = "row" if document.name.lower().endswith(".parquet") else "line"
    return f"{files.spoken(document.name)}, {what} {line:,}"


def too_long(
    document: Document, line: int, most: int = MOST_CHARACTERS, *, in_table: bool = False
) -> InputError:
    """The error for a record, or a line of a table, of more than `most` characters."""
    what = "a record" if most == MOST_CHARACTERS else "a line"
    hint = "for a text a file: --records file; for one text: --records none"
    return InputError(
        f"{place_of(document, line)}: {what} of more than {most:,} characters",
        hint="leave it out, or divide it into several rows" if in_table else hint,
    )
