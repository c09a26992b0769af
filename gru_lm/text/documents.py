"""Documents: texts read in pieces, surveyed and sliced in constant memory, any number of times.

A document yields its decoded characters unchanged, including line ends, NULs and spaces; only a UTF-8
byte order mark at the start is dropped. Independent of command-line arguments and tokens. Invariant:
every byte is decoded, or an error names the first invalid one; a file that changed since it was opened
is an error.
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
from gru_lm.signals import Stop, never, unheard
from gru_lm.text import files

# Bytes per read. Larger reads are no faster and fragment the C heap: after 365 MB of text, resident
# memory had grown by 60 MB with 256 KiB, and by 1 MB with 16 KiB.
CHUNK = 1 << 14
PACKED_TO = 3  # typical compression ratio of text
MARK_BYTES = 1 << 20  # distance between marks


class Document(Protocol):
    """A named text that can be read any number of times."""

    @property
    def name(self) -> str:
        """Name shown to the user: the path, "-", or "@corpus/file"."""

    def pieces(self) -> Iterator[str]:
        """The text in pieces of at most CHUNK characters. Raises InputError if it is unreadable."""


@dataclass(frozen=True)
class Mark:
    """A character border in a file, to which reading can seek: characters and bytes before it."""

    characters: int
    bytes: int


@dataclass(frozen=True)
class FileDocument:
    """A regular file. `identity`: device, inode, size and modification time when first opened.

    `marks`: further positions from which reading can start, recorded by `survey` for plain UTF-8.
    """

    name: str
    path: Path
    encoding: str
    identity: tuple[int, int, int, int]
    marks: tuple[Mark, ...] = ()

    def pieces(self, offset: int = 0) -> Iterator[str]:
        """As for any Document, from byte `offset`, which must be that of a mark."""
        # utf-8-sig is UTF-8 without a byte order mark at the start.
        codec = "utf-8-sig" if self.encoding == "utf-8" and not offset else self.encoding
        decoder = codecs.getincrementaldecoder(codec)()
        with files.reading(self.name, self.path) as (raw, stream):
            self._check(raw)
            if offset:
                stream.seek(offset)
            chunks = iter(lambda: stream.read(CHUNK), b"")
            for chunk in itertools.chain(chunks, [b""]):  # the empty chunk flushes the decoder
                offset += len(chunk)
                try:
                    piece = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    # error.object: bytes buffered by the decoder, followed by this chunk.
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
        """Size of the text in bytes, without reading it; an estimate for compressed files."""
        packed = self.path.suffix.lower() in files.PACKED
        return self.identity[2] * (PACKED_TO if packed else 1)

    def can_seek(self) -> bool:
        """Whether reading can start at a mark."""
        return self.encoding == "utf-8" and self.path.suffix.lower() not in files.PACKED

    def check(self) -> None:
        """Raise InputError if the file was replaced or modified since it was opened."""
        with files.reading(self.name, self.path) as (raw, _):
            self._check(raw)

    def _check(self, raw: BinaryIO) -> None:
        if identity_of(os.fstat(raw.fileno())) != self.identity:
            raise InputError(
                f"{self.name} changed while it was read",
                hint="use a copy that no other program writes to",
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
            hint=f"specify its encoding, for example --encoding {other}",
        )


def identity_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """Device, inode, size and modification time, which identify an unchanged file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Slice:
    """The characters [start, end) of another document."""

    document: Document
    start: int
    end: int

    @property
    def name(self) -> str:
        """The name of the whole document."""
        return self.document.name

    def pieces(self) -> Iterator[str]:
        return _Pass(self.document).read(self.start, self.end)


def beginning(document: Document) -> tuple[int, int, int]:
    """Start of a document in its file: line (from 1), characters and UTF-8 bytes (from 0)."""
    line, characters, size = 1, 0, 0
    if isinstance(document, Slice):
        for piece in Slice(document.document, 0, document.start).pieces():
            line += piece.count("\n")
            characters += len(piece)
            size += len(piece.encode())
    return line, characters, size


class _Pass:
    """One pass over a document, from which slices are read in increasing order."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.start, self.end = 0, 0  # of the current piece
        self._piece = ""
        self._pieces = document.pieces()

    def read(self, start: int, end: int) -> Iterator[str]:
        """The characters [start, end); skips those before by seeking where possible."""
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
    """Yield the pieces of each document; the iterators must be consumed in order.

    Consecutive slices of one document share a single pass over it.
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
    """Result of one pass over documents; `bytes` is the size of the text in UTF-8."""

    characters: int
    bytes: int
    fingerprint: str  # SHA-256 of each document's UTF-8 bytes followed by their number (8 bytes)
    document_characters: tuple[int, ...]
    documents: tuple[Document, ...]  # those surveyed, with marks
    carriage_returns: int


def survey(
    documents: Sequence[Document],
    *,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> Survey:
    """Read all documents once; `progress` is called with UTF-8 bytes.

    The fingerprint depends on the text and the document borders, but not on names.
    """
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
    """The document with `marks`, shifted by the byte order mark; the text has `size` UTF-8 bytes."""
    if not marks or not isinstance(document, FileDocument) or not document.can_seek():
        return document
    offset = document.identity[2] - size  # length of the byte order mark, or 0
    shifted = tuple(Mark(mark.characters, offset + mark.bytes) for mark in marks)
    return dataclasses.replace(document, marks=shifted)


def cut(
    documents: Sequence[Document], lengths: Sequence[int], start: int, end: int
) -> tuple[list[Document], list[int]]:
    """The characters [start, end) of the concatenated documents, without empty documents.

    `lengths`: characters of each document, as in a Survey. Returns the documents and their lengths.
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
