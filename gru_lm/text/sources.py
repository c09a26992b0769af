"""Where text comes from: files, folders, globs, standard input, named corpora.

`open_documents` stats and sniffs, and refuses what is not text; a document then yields its decoded
characters in pieces, as often as asked, in constant memory. Nothing is translated: line ends, NULs
and spaces stay; only a UTF-8 byte order mark at the start is dropped, being a mark of the encoding.
Knows nothing of tokens. Invariant: every byte of a document is decoded or an error names the first
that was not; a file that changed since it was opened is an error too.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import itertools
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from gru_lm import atomic
from gru_lm.errors import InputError
from gru_lm.text import corpora, files

# Bytes a read. Larger pieces are no quicker and fragment the C heap: 365 MB of text left 60 MB more
# resident memory with 256 KiB, and 1 MB with 16 KiB.
CHUNK = 1 << 14
HEAD = 1 << 13  # bytes on which a file is judged


def _never() -> None:
    """No signal ever came."""


def _silent(amount: int) -> None:
    """Nobody watches."""
    del amount


def _mute(text: str) -> None:
    """Nobody listens."""
    del text


class Document(Protocol):
    """A text with a name, to be read any number of times."""

    @property
    def name(self) -> str:
        """As shown to a user: the path, "-", or "@corpus/file"."""

    def pieces(self) -> Iterator[str]:
        """The text in order, in pieces of at most 1 Mi characters. Raises InputError."""


@dataclass(frozen=True)
class FileDocument:
    """A regular file. `identity` is its device, inode, size and time as it was opened first."""

    name: str
    path: Path
    encoding: str
    identity: tuple[int, int, int, int]

    def pieces(self) -> Iterator[str]:
        # utf-8-sig drops a byte order mark at the start and is UTF-8 in all else.
        signed = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        decoder = codecs.getincrementaldecoder(signed)()
        with files.reading(self.name, self.path) as (raw, stream):
            self._check(raw)
            offset = 0
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

    def _check(self, raw: BinaryIO) -> None:
        if _identity(os.fstat(raw.fileno())) != self.identity:
            raise InputError(
                f"{self.name} changed while it was read",
                hint="copy it to a file that nobody writes to, and name the copy",
            )

    def _undecodable(self, at: int, error: UnicodeDecodeError) -> InputError:
        other = "latin-1" if self.encoding == "utf-8" else "utf-8"
        return InputError(
            f"{files.spoken(self.name)}: not {self.encoding} at byte {at:,}",
            why=f"0x{error.object[error.start]:02x}: {error.reason}",
            hint=f"name its encoding, for example --encoding {other}",
        )


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
        position = 0
        for piece in self.document.pieces():
            wanted = piece[max(0, self.start - position) : max(0, self.end - position)]
            if wanted:
                yield wanted
            position += len(piece)
            if position >= self.end:
                return


def open_documents(
    specs: Sequence[str],
    *,
    encoding: str = "utf-8",
    stdin: Path | None = None,
    stop: Callable[[], None] = _never,
    note: Callable[[str], None] = _mute,
) -> list[Document]:
    """The documents that `specs` name, in order; opens each file for a look at its first bytes.

    A spec is a file (.gz, .bz2 and .xz are decompressed on the way); a folder, whose text files are
    taken recursively in the order of their paths, without hidden ones, without what runs wrote and
    without following links to folders; a glob, where no file has that very name, whose matches
    count as a folder's content;
    `-`, read from the file `stdin` that `spool_stdin` made; or `@name`, a corpus, always in UTF-8.
    `./-` and `./@name` are files. A file that several specs reach is one document, at its first
    place. `note` hears of downloads.

    Raises InputError for what is missing, unreadable, empty or no text (in folders and globs, what
    is empty or no text is skipped, but some text must be there), and UsageError for an encoding
    that is not one.
    """
    encoding = files.known_encoding(encoding)
    found: dict[tuple[int, int], Document] = {}
    for spec in specs:
        for document in _expand(spec, encoding=encoding, stdin=stdin, stop=stop, note=note):
            found.setdefault(document.identity[:2], document)
    return list(found.values())


def _expand(
    spec: str,
    *,
    encoding: str,
    stdin: Path | None,
    stop: Callable[[], None],
    note: Callable[[str], None],
) -> Iterator[FileDocument]:
    if spec == "-":
        assert stdin is not None, "the caller spools standard input first"
        yield _file_document("-", stdin, encoding)
    elif spec.startswith("@"):
        for path in corpora.corpus_paths(spec[1:], stop=stop, note=note):
            yield _file_document(f"{spec}/{path.name}", path, "utf-8")
    elif not spec or "\0" in spec:
        raise InputError(f"{spec!r} is no name of a file")
    elif _is_folder(Path(spec)):
        yield from _texts_among(spec, _walk(Path(spec)), encoding, stop)
    elif glob.has_magic(spec) and not os.path.lexists(spec):
        # As a shell does it: hidden files are not matched by *, folders are walked.
        matches = map(Path, sorted(glob.glob(spec, recursive=True)))  # noqa: PTH207
        paths = (path for each in matches for path in (_walk(each) if _is_folder(each) else [each]))
        yield from _texts_among(spec, paths, encoding, stop)
    elif spec in corpora.names() and not os.path.lexists(spec):
        raise InputError(f"{spec}: no such file", hint=f"the corpus of that name is @{spec}")
    else:
        yield _file_document(files.shown(spec), Path(spec), encoding)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # without permission to look; reading it will say so
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """Every file under `folder` that is not hidden nor beside a run, sorted. Raises InputError."""

    def refuse(error: OSError) -> None:
        raise files.unreadable(files.shown(error.filename), Path(error.filename), error) from error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or files.holds_run(Path(parent, name)))
        ]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    yield from sorted(paths)


def _texts_among(
    spec: str, paths: Iterable[Path], encoding: str, stop: Callable[[], None]
) -> Iterator[FileDocument]:
    seen = texts = 0
    for seen, path in enumerate(paths, start=1):  # noqa: B007
        stop()
        if files.of_run(path):
            continue
        try:
            document = _file_document(files.shown(path), path, encoding)
        except files.NotTextError:
            continue
        texts += 1
        yield document
    if not texts:
        what = f"none of its {seen:,} files is text" if seen else "no file there"
        raise InputError(f"{files.shown(spec)}: {what}", hint="name a text file, or another folder")


def _file_document(name: str, path: Path, encoding: str) -> FileDocument:
    """The document at `path`, once it looks like text. Raises InputError."""
    with files.reading(name, path) as (raw, stream):
        identity = _identity(os.fstat(raw.fileno()))
        head = stream.read(HEAD)
    files.judge(name, path, head, encoding)
    return FileDocument(name, path, encoding, identity)


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def spool_stdin(path: Path, *, stop: Callable[[], None] = _never) -> None:
    """Keep all of standard input as the file `path`, atomically and in constant memory.

    Raises InputError where there is no standard input and EnvironmentProblem where it cannot be
    kept; calls `stop` at least every 0.2 s.
    """
    if sys.stdin is None:
        raise InputError(
            "standard input is closed", hint="pipe text into the command: ... | gru-lm"
        )
    descriptor = sys.stdin.fileno()
    with atomic.replacing(path) as file:
        while True:
            stop()
            if not select.select([descriptor], [], [], 0.2)[0]:
                continue
            try:
                block = os.read(descriptor, CHUNK)
            except OSError as error:
                reason = error.strerror
                raise InputError(f"standard input cannot be read: {reason}") from error
            if not block:
                return
            file.write(block)


@dataclass(frozen=True)
class Survey:
    """What one pass over documents finds; `bytes` are those of the text in UTF-8."""

    characters: int
    bytes: int
    fingerprint: str  # sha256 over each document's UTF-8 bytes, then their number in 8 bytes
    document_characters: tuple[int, ...]


def survey(
    documents: Sequence[Document],
    *,
    stop: Callable[[], None] = _never,
    progress: Callable[[int], None] = _silent,
) -> Survey:
    """Read everything once. `progress` is told UTF-8 bytes. Borders of documents count, names not."""
    digest = hashlib.sha256()
    total = 0
    lengths = []
    for document in documents:
        characters = size = 0
        for piece in document.pieces():
            stop()
            data = piece.encode()
            digest.update(data)
            characters += len(piece)
            size += len(data)
            progress(len(data))
        digest.update(size.to_bytes(8, "big"))
        lengths.append(characters)
        total += size
    return Survey(sum(lengths), total, digest.hexdigest(), tuple(lengths))


def cut(
    documents: Sequence[Document], lengths: Sequence[int], start: int, end: int
) -> list[Document]:
    """The characters [start, end) of all documents in a row; those left empty are dropped.

    `lengths` are the documents' characters, as a Survey has them.
    """
    kept: list[Document] = []
    before = 0
    for document, length in zip(documents, lengths, strict=True):
        first, last = max(0, start - before), min(length, end - before)
        if first < last:
            whole = (first, last) == (0, length)
            kept.append(document if whole else Slice(document, first, last))
        before += length
    return kept
