"""Documents: texts that are read, surveyed and cut, as often as asked, in constant memory.

A document yields its decoded characters in pieces. Nothing is translated: line ends, NULs and spaces
stay; only a UTF-8 byte order mark at the start is dropped, being a mark of the encoding. Knows nothing
of how users name texts, nor of tokens. Invariant: every byte that is asked for is decoded or an error
names the first that was not; a file that changed since it was opened is an error too.
"""

from __future__ import annotations

import bisect
import codecs
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from gru_lm.errors import InputError
from gru_lm.signals import Stop, never
from gru_lm.text import files

# Bytes a read. Larger pieces are no quicker and fragment the C heap: 365 MB of text left 60 MB more
# resident memory with 256 KiB, and 1 MB with 16 KiB.
CHUNK = 1 << 14
PACKED_TO = 3  # bytes of text in a compressed one, often
MARK_BYTES = 1 << 20  # between two places of a file where reading may begin


def _silent(amount: int) -> None:
    """Nobody watches."""
    del amount


class Document(Protocol):
    """A text with a name, to be read any number of times."""

    @property
    def name(self) -> str:
        """As shown to a user: the path, "-", or "@corpus/file"."""

    def pieces(self) -> Iterator[str]:
        """The text in order, in pieces of at most CHUNK characters. Raises InputError."""


@dataclass(frozen=True)
class Mark:
    """A place in a file where a character begins: characters and bytes of the file before it."""

    characters: int
    bytes: int


@dataclass(frozen=True)
class FileDocument:
    """A regular file. `identity` is its device, inode, size and time as it was opened first.

    `marks`, which a survey finds in plain UTF-8, are where reading may begin besides the start.
    """

    name: str
    path: Path
    encoding: str
    identity: tuple[int, int, int, int]
    marks: tuple[Mark, ...] = ()

    def pieces(self, offset: int = 0) -> Iterator[str]:
        """As a Document's; from byte `offset`, which must be a mark's."""
        # utf-8-sig drops a byte order mark at the start and is UTF-8 in all else.
        signed = "utf-8-sig" if self.encoding == "utf-8" and not offset else self.encoding
        decoder = codecs.getincrementaldecoder(signed)()
        with files.reading(self.name, self.path) as (raw, stream):
            self._check(raw)
            if offset:
                stream.seek(offset)
            chunks = iter(lambda: stream.read(CHUNK), b"")
            for chunk in itertools.chain(chunks, [b""]):  # the empty one ends the text
                offset += len(chunk)
                try:
                    piece = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    # error.object is the end of what was read: bytes held back and this chunk.
                    at = offset - len(error.object) + error.start
                    raise self._undecodable(at, error) from error
                except UnicodeError as error:  # UTF-16 and UTF-32 without a byte order mark
                    raise InputError(
                        f"{files.spoken(self.name)}: not {self.encoding}",
                        why=str(error),
                        hint=f"--encoding utf-8, or {self.encoding}-le",
                    ) from error
                if piece:
                    yield piece
            self._check(raw)

    def size(self) -> int:
        """Bytes of its text, roughly where it is compressed; known without reading it."""
        packed = self.path.suffix.lower() in files.PACKED
        return self.identity[2] * (PACKED_TO if packed else 1)

    def can_seek(self) -> bool:
        """Whether reading may begin elsewhere than at the start."""
        return self.encoding == "utf-8" and self.path.suffix.lower() not in files.PACKED

    def check(self) -> None:
        """Raise InputError where the file at the path is another one, or has changed."""
        with files.reading(self.name, self.path) as (raw, _):
            self._check(raw)

    def _check(self, raw: BinaryIO) -> None:
        if identity_of(os.fstat(raw.fileno())) != self.identity:
            raise InputError(
                f"{self.name} changed while it was read",
                hint="copy it to a file that nobody writes to, and name the copy",
            )

    def _undecodable(self, at: int, error: UnicodeDecodeError) -> InputError:
        other = "latin-1" if self.encoding == "utf-8" else "utf-8"
        place = files.spoken(self.name)
        if files.newline_is_a_byte(self.encoding):
            with files.reading(self.name, self.path) as (_, stream):
                before = iter(lambda: stream.read(min(CHUNK, at - stream.tell())), b"")
                line = 1 + sum(chunk.count(b"\n") for chunk in before)
            place += f", line {line:,}"
        return InputError(
            f"{place}: not {self.encoding} at byte {at:,}",
            why=f"0x{error.object[error.start]:02x}: {error.reason}",
            hint=f"name its encoding, for example --encoding {other}",
        )


def identity_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What tells whether a file is still the same, unchanged."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Slice:
    """The characters [start, end) of another document."""

    document: Document
    start: int
    end: int

    @property
    def name(self) -> str:
        """The whole document's name."""
        return self.document.name

    def pieces(self) -> Iterator[str]:
        return _Pass(self.document).read(self.start, self.end)


def beginning(document: Document) -> tuple[int, int, int]:
    """Where in its file a document begins: the line from 1, characters and UTF-8 bytes from 0."""
    line, characters, size = 1, 0, 0
    if isinstance(document, Slice):
        for piece in Slice(document.document, 0, document.start).pieces():
            line += piece.count("\n")
            characters += len(piece)
            size += len(piece.encode())
    return line, characters, size


class _Pass:
    """One pass over a document, from which slices are read in rising order."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.start, self.end = 0, 0  # of the piece at hand
        self._piece = ""
        self._pieces = document.pieces()

    def read(self, start: int, end: int) -> Iterator[str]:
        """The characters [start, end); what comes before is skipped, by seeking where that goes."""
        self._skip(start)
        while True:
            wanted = self._piece[max(0, start - self.start) : max(0, end - self.start)]
            if wanted:
                yield wanted
            if self.end >= end:
                if isinstance(self.document, FileDocument):
                    self.document.check()
                return
            if (piece := next(self._pieces, None)) is None:
                return
            self._piece, self.start, self.end = piece, self.end, self.end + len(piece)

    def _skip(self, start: int) -> None:
        if isinstance(self.document, FileDocument):
            marks = self.document.marks
            number = bisect.bisect_right(marks, start, key=lambda mark: mark.characters)
            if number and marks[number - 1].characters > self.end:
                mark = marks[number - 1]
                self._pieces, self._piece = self.document.pieces(mark.bytes), ""
                self.start = self.end = mark.characters


def readings(documents: Iterable[Document]) -> Iterator[Iterator[str]]:
    """The pieces of each document, to be read in this order.

    Slices of one document that follow each other share one pass over it.
    """
    shared: _Pass | None = None
    for document in documents:
        if not isinstance(document, Slice):
            yield document.pieces()
            continue
        if not shared or shared.document is not document.document or document.start < shared.start:
            shared = _Pass(document.document)
        yield shared.read(document.start, document.end)


@dataclass(frozen=True)
class Survey:
    """What one pass over documents finds; `bytes` are those of the text in UTF-8."""

    characters: int
    bytes: int
    fingerprint: str  # sha256 over each document's UTF-8 bytes, then their number in 8 bytes
    document_characters: tuple[int, ...]
    documents: tuple[Document, ...]  # those surveyed, with marks
    carriage_returns: int


def survey(
    documents: Sequence[Document],
    *,
    stop: Stop = never,
    progress: Callable[[int], None] = _silent,
) -> Survey:
    """Read everything once. `progress` is told UTF-8 bytes. Borders of documents count, names not."""
    digest = hashlib.sha256()
    total = returns = 0
    lengths = []
    marked: list[Document] = []
    for document in documents:
        characters = size = 0
        marks: list[Mark] = []
        for piece in document.pieces():
            stop()
            if size >= (len(marks) + 1) * MARK_BYTES:
                marks.append(Mark(characters, size))
            data = piece.encode()
            digest.update(data)
            characters += len(piece)
            size += len(data)
            returns += piece.count("\r")
            progress(len(data))
        digest.update(size.to_bytes(8, "big"))
        lengths.append(characters)
        marked.append(_marked(document, marks, size))
        total += size
    return Survey(sum(lengths), total, digest.hexdigest(), tuple(lengths), tuple(marked), returns)


def _marked(document: Document, marks: Sequence[Mark], size: int) -> Document:
    """The document with `marks`, whose bytes are so far those of `size` bytes of text in UTF-8."""
    if not marks or not isinstance(document, FileDocument) or not document.can_seek():
        return document
    before = document.identity[2] - size  # a byte order mark, or nothing
    found = tuple(Mark(mark.characters, before + mark.bytes) for mark in marks)
    return dataclasses.replace(document, marks=found)


def cut(
    documents: Sequence[Document], lengths: Sequence[int], start: int, end: int
) -> tuple[list[Document], list[int]]:
    """The characters [start, end) of all documents in a row; those left empty are dropped.

    `lengths` are the documents' characters, as a Survey has them; those of the cut are returned too.
    """
    kept: list[Document] = []
    kept_lengths: list[int] = []
    before = 0
    for document, length in zip(documents, lengths, strict=True):
        first, last = max(0, start - before), min(length, end - before)
        if first < last:
            kept.append(_sliced(document, first, last, length))
            kept_lengths.append(last - first)
        before += length
    return kept, kept_lengths


def _sliced(document: Document, first: int, last: int, length: int) -> Document:
    if (first, last) == (0, length):
        return document
    if isinstance(document, Slice):
        return Slice(document.document, document.start + first, document.start + last)
    return Slice(document, first, last)
