"""Where text comes from: files, folders, globs, standard input, named corpora.

`open_documents` stats and sniffs, and refuses what is not text. How a document is read is
documents.py's business. Knows nothing of tokens. Invariant: the same names over the same files give
the same documents in the same order.
"""

from __future__ import annotations

import glob
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gru_lm import atomic, caches, layout
from gru_lm.errors import InputError
from gru_lm.signals import Stop, never, unheard
from gru_lm.text import corpora, files
from gru_lm.text.documents import CHUNK, Document, FileDocument, identity_of

HEAD = 1 << 13  # bytes on which a file is judged


def open_documents(
    specs: Sequence[str],
    *,
    encoding: str = "utf-8",
    stdin: Path | None = None,
    stop: Stop = never,
    note: Callable[[str], None] = unheard,
) -> list[Document]:
    """The documents that `specs` name, in order; opens each file for a look at its first bytes.

    A spec is a file (.gz, .bz2 and .xz are decompressed on the way); a folder, whose text files are
    taken recursively in the order of their paths, without hidden ones, without what our commands wrote
    (layout.py) and without following links to folders; a glob, where no file has that very name, whose
    matches count as a folder's content; `-`, read from the file `stdin` that `spool_stdin` made; or
    `@name`, a corpus, always in UTF-8.
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
    stop: Stop,
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
    """Every file under `folder`, sorted, but hidden ones and folders of ours. Raises InputError."""

    def refuse(error: OSError) -> None:
        raise files.unreadable(files.shown(error.filename), Path(error.filename), error) from error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or layout.is_folder_of_ours(Path(parent, name)))
        ]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    yield from sorted(paths)


def _texts_among(
    spec: str, paths: Iterable[Path], encoding: str, stop: Stop
) -> Iterator[FileDocument]:
    seen = texts = 0
    written = _output_streams()
    in_cache = caches.contains(Path(spec).absolute())  # a cached corpus named by its path
    for seen, path in enumerate(paths, start=1):  # noqa: B007
        stop()
        if layout.is_file_of_ours(path):
            continue
        if not in_cache and caches.contains(path.absolute()):
            continue
        try:
            document = _file_document(files.shown(path), path, encoding, named=False)
        except files.NotTextError:
            continue
        if document.identity[:2] in written:
            continue
        texts += 1
        yield document
    if not texts:
        what = f"none of its {seen:,} files is text" if seen else "no file there"
        raise InputError(f"{files.shown(spec)}: {what}", hint="name a text file, or another folder")


def _output_streams() -> set[tuple[int, int]]:
    """Device and inode of where this process's standard output and error go."""
    found = set()
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            status = os.fstat(descriptor)
            found.add((status.st_dev, status.st_ino))
    return found


def _file_document(name: str, path: Path, encoding: str, *, named: bool = True) -> FileDocument:
    """The document at `path`, once it looks like text; unless `named`, text of ours is none.

    Raises InputError.
    """
    with files.reading(name, path) as (raw, stream):
        identity = identity_of(os.fstat(raw.fileno()))
        head = stream.read(HEAD)
    if not named and layout.begins_as_ours(head):
        raise files.NotTextError(f"{name} was written by gru-lm")
    files.judge(name, path, head, encoding)
    return FileDocument(name, path, encoding, identity)


def spool_stdin(path: Path, *, stop: Stop = never) -> None:
    """Keep all of standard input as the file `path`, atomically and in constant memory.

    Raises as `stdin_blocks` does, and EnvironmentProblem where it cannot be kept.
    """
    with atomic.replacing(path) as file:
        for block in stdin_blocks(stop=stop):
            file.write(block)


def stdin_blocks(*, stop: Stop = never) -> Iterator[bytes]:
    """Standard input as it comes. Calls `stop` at least every 0.2 s; raises InputError without any."""
    if sys.stdin is None:
        raise InputError(
            "standard input is closed", hint="pipe text into the command: ... | gru-lm"
        )
    descriptor = sys.stdin.fileno()
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
        yield block
