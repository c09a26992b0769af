"""Text sources: files, folders, globs, standard input, named corpora.

`open_documents` inspects the beginning of each file and rejects files that are not text; reading is
done by documents.py. Independent of tokens. Invariant: the same specs on the same files give the
same documents in the same order.
"""

from __future__ import annotations

import glob
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gru_lm import atomic, caches, layout
from gru_lm.errors import InputError
from gru_lm.signals import Stop, never, unheard
from gru_lm.text import corpora, files
from gru_lm.text.documents import CHUNK, Document, FileDocument, identity_of
from gru_lm.text.records import ROW, Form
from gru_lm.text.tables import FORMATS, PARQUET, format_of, is_piped, not_a_table

HEAD = 1 << 13  # bytes inspected to decide whether a file is text


def open_documents(
    specs: Sequence[str],
    *,
    encoding: str = "utf-8",
    form: Form | None = None,
    stdin: Path | None = None,
    stop: Stop = never,
    note: Callable[[str], None] = unheard,
) -> list[Document]:
    """Resolve `specs` to documents, in order; reads the first bytes of each file.

    A spec is one of:

    - a file; .gz, .bz2, .xz and .zst are decompressed;
    - a folder: its text files, recursively, sorted by path; hidden files, files written by gru-lm
      (layout.py) and links to folders are skipped;
    - a glob, unless a file has exactly this name; matches are treated like the contents of a folder;
    - `-`: standard input, read from the file `stdin` created by `spool_stdin`;
    - `@name`: a corpus, always in UTF-8; `./@name` and `./-` are files.

    A file matched by several specs is included once, at its first position. If the records of `form`
    are rows, files must be tables by their names; only then may they be in Parquet. `note` is called
    before downloads. Raises InputError for a file that is missing, unreadable, empty, not text or no
    table (in folders and globs, such files are skipped, but one is required), and UsageError for an
    unknown encoding.
    """
    opening = _Opening(files.known_encoding(encoding), form is not None and form.unit == ROW)
    documents: dict[tuple[int, int], Document] = {}
    for spec in specs:
        for document in _expand(spec, opening, stdin=stdin, stop=stop, note=note):
            documents.setdefault(document.identity[:2], document)
    return list(documents.values())


class _Opening(NamedTuple):
    """How files are opened: the encoding of texts, and whether they must be tables."""

    encoding: str
    tables: bool


def _expand(
    spec: str,
    opening: _Opening,
    *,
    stdin: Path | None,
    stop: Stop,
    note: Callable[[str], None],
) -> Iterator[FileDocument]:
    if spec == "-":
        assert stdin is not None, "the caller spools standard input first"
        yield _file_document("-", stdin, opening)
    elif spec.startswith("@"):
        for path in corpora.corpus_paths(spec[1:], stop=stop, note=note):
            yield _file_document(f"{spec}/{path.name}", path, opening._replace(encoding="utf-8"))
    elif not spec or "\0" in spec:
        raise InputError(f"{spec!r} is not a valid file name")
    elif _is_folder(Path(spec)):
        yield from _texts_among(spec, _walk(Path(spec)), opening, stop)
    elif glob.has_magic(spec) and not os.path.lexists(spec):
        # As in a shell, * does not match hidden files; folders are searched recursively.
        matches = map(Path, sorted(glob.glob(spec, recursive=True)))  # noqa: PTH207
        paths = (path for each in matches for path in (_walk(each) if _is_folder(each) else [each]))
        yield from _texts_among(spec, paths, opening, stop)
    elif spec in corpora.names() and not os.path.lexists(spec):
        raise InputError(f"{spec}: no such file", hint=f"for the corpus: @{spec}")
    else:
        yield _file_document(files.shown(spec), Path(spec), opening)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # permission denied; reading the file reports it
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """All files under `folder`, sorted, without hidden files and folders written by gru-lm.

    Raises InputError for an unreadable folder.
    """

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
    spec: str, paths: Iterable[Path], opening: _Opening, stop: Stop
) -> Iterator[FileDocument]:
    seen = texts = 0
    written = _output_streams()
    in_cache = caches.contains(Path(spec).absolute())  # a cached corpus given by its path
    for seen, path in enumerate(paths, start=1):  # noqa: B007
        stop()
        if layout.is_file_of_ours(path):
            continue
        if not in_cache and caches.contains(path.absolute()):
            continue
        try:
            document = _file_document(files.shown(path), path, opening, named=False)
        except files.NotTextError:
            continue
        if document.identity[:2] in written:
            continue
        texts += 1
        yield document
    if not texts:
        kind = "a table" if opening.tables else "text"
        what = f"none of its {seen:,} files is {kind}" if seen else "no files found"
        wanted = f"a table ({', '.join(FORMATS)})" if opening.tables else "a text file"
        raise InputError(f"{files.shown(spec)}: {what}", hint=f"give {wanted}, or another folder")


def _output_streams() -> set[tuple[int, int]]:
    """Device and inode of this process's standard output and error."""
    outputs = set()
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            status = os.fstat(descriptor)
            outputs.add((status.st_dev, status.st_ino))
    return outputs


def _file_document(name: str, path: Path, opening: _Opening, *, named: bool = True) -> FileDocument:
    """Open the document at `path`. Raises InputError if it is unreadable, not text or no table.

    Unless explicitly `named`, files written by gru-lm are rejected too.
    """
    table = format_of(name) if opening.tables else None
    with files.reading(name, path) as (raw, stream):
        if opening.tables and table is None and not is_piped(name):
            raise not_a_table(name)
        identity = identity_of(os.fstat(raw.fileno()))
        head = stream.read(HEAD)
    if not named and layout.begins_as_ours(head):
        raise files.NotTextError(f"{name} was written by gru-lm")
    if table != PARQUET or not head.startswith(files.PARQUET):
        files.judge(name, path, head, opening.encoding)
    return FileDocument(name, path, opening.encoding, identity)


def spool_stdin(path: Path, *, stop: Stop = never) -> None:
    """Copy standard input to the file `path`, atomically and in constant memory.

    Raises the exceptions of `stdin_blocks`, and EnvironmentProblem if the file cannot be written.
    """
    with atomic.replacing(path) as file:
        for block in stdin_blocks(stop=stop):
            file.write(block)


def stdin_blocks(*, stop: Stop = never) -> Iterator[bytes]:
    """Yield blocks of standard input. Polls `stop` every 0.2 s; raises InputError if it is closed."""
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
