"""Location, size and security of the caches: kernels, tokenized texts, corpora, matplotlib's files.

Each cache is a folder with mode 0700 in the user's cache directory. If that is unusable (no home
directory, read-only or full disk, a file of the same name), a folder in the temporary directory is used
instead, with one note. Independent of the contents. Invariant: a file or folder that is owned by another
user, or writable by others, is never used.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from gru_lm import atomic
from gru_lm.errors import EnvironmentProblem, unknown_name
from gru_lm.layout import is_temporary

KERNELS, TOKENS, CORPORA, MATPLOTLIB = NAMES = ("kernels", "tokens", "corpora", "matplotlib")
LOCK = ".lock"  # never removed: otherwise two processes could each lock a file of this name
UNUSED_DAYS = 30
MOST_BYTES = 10 * 10**9  # maximum per cache; at most a tenth of the disk
_HINT = "XDG_CACHE_HOME=DIRECTORY moves the caches"

# Receives the notes about unusable caches; the command line prints them.
listener: Callable[[str], None] = functools.partial(warnings.warn, stacklevel=3)
_said: set[tuple[str, ...]] = set()


def say(text: str, *about: str) -> None:
    """Send a note to the listener once per text, or once per subject if `about` is given."""
    if (about or (text,)) not in _said:
        _said.add(about or (text,))
        listener(text)


def folder(name: str, *, failed: Path | None = None) -> Path:
    """The folder of one of NAMES, checked to be writable; temporaries of dead processes are removed.

    `failed` is a folder to skip because a write to it failed. Raises EnvironmentProblem if the temporary
    directory is not writable either.
    """
    problem, why = "", ""
    for root in _roots():
        if root is None:
            problem = "no home directory for the caches"
            continue
        path = root / name
        try:
            if path == failed:
                raise OSError("a write failed")
            _prepare(root)
            _prepare(path)
            with tempfile.TemporaryFile(dir=path, buffering=0) as probe:
                probe.write(b"x")
        except OSError as error:
            if not problem:
                why = error.strerror or str(error)
                problem = f"no cache in {path if root.is_dir() else root}: {why}"
            continue
        atomic.sweep(path)
        if problem:  # one note for all caches that fail for the same reason
            say(f"{problem}; using {root} ({_HINT})", why, str(root))
        return path
    raise EnvironmentProblem(
        problem, why="the temporary directory is not writable either", hint=_HINT
    )


def contains(path: Path) -> bool:
    """Whether an absolute `path` lies in a cache."""
    roots = (_user_root(), _temporary_root())
    return any(root and path.is_relative_to(root.absolute()) for root in roots)


def opened(path: Path) -> BinaryIO:
    """Open a cached file for reading. Raises OSError unless it is a regular file only we can write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        _must_be_ours(path, status)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def mark_used(path: Path) -> None:
    """Make a file the most recently used one."""
    with suppress(OSError):
        os.utime(path)


def trim(directory: Path, pattern: str, *, keep: Collection[Path] = ()) -> None:
    """Remove files unused for UNUSED_DAYS, then the least recently used beyond `bound`.

    Files in `keep` are never removed.
    """
    files = []
    for path in directory.glob(pattern):
        with suppress(OSError):
            status = path.lstat()
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    oldest, most = time.time() - UNUSED_DAYS * 24 * 3600, bound(directory)
    for used, size, path in sorted(files):
        if (used < oldest or total > most) and path not in keep:
            remove(path)
            total -= size


def bound(directory: Path) -> int:
    """Maximum size of a cache in bytes."""
    return min(MOST_BYTES, shutil.disk_usage(directory).total // 10)


def remove(path: Path) -> None:
    """Remove a file or a tree, ignoring errors."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def usage() -> list[dict[str, Any]]:
    """Existing cache folders: name, path, number of files, bytes."""
    return [
        {"name": name, "path": str(path), "files": len(sizes), "bytes": sum(sizes)}
        for name, path in _folders(NAMES)
        for sizes in [[size for _, size in _contents(path)]]
    ]


def clear(names: Sequence[str] = NAMES) -> dict[str, int]:
    """Empty the named caches; returns the number of `files` and `bytes` removed.

    Files being written by a live process stay. Raises UsageError for an unknown name and
    EnvironmentProblem for a file that cannot be removed.
    """
    for name in names:
        if name not in NAMES:
            raise unknown_name("cache", name, NAMES)
    count = size = 0
    for _, path in _folders(names):
        atomic.sweep(path)
        for file, bytes_ in _contents(path):
            if not any(part == LOCK or is_temporary(part) for part in file.parts):
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise EnvironmentProblem(
                        f"cannot remove {file}: {error.strerror}", hint=f"rm -r {path}"
                    ) from error
                count, size = count + 1, size + bytes_
        for parent, folders, _ in os.walk(path, topdown=False):
            for each in folders:
                with suppress(OSError):  # not empty
                    Path(parent, each).rmdir()
    return {"files": count, "bytes": size}


def _folders(names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Existing folders with these names, in the user's cache and in the temporary directory."""
    for root in filter(None, (_user_root(), _temporary_root())):
        for path in (root / name for name in names):
            if path.is_dir() and _is_ours(root.lstat()) and _is_ours(path.lstat()):
                yield path.name, path


def _contents(directory: Path) -> Iterator[tuple[Path, int]]:
    """Files below a directory with their sizes; links are not followed."""
    for parent, folders, names in os.walk(directory):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in (*names, *links)):
            with suppress(OSError):
                yield path, path.lstat().st_size


def _roots() -> Iterator[Path | None]:
    """Candidate locations in order; None if there is no home directory."""
    yield _user_root()
    yield _temporary_root()
    with suppress(OSError):
        yield _passing_root()


def _user_root() -> Path | None:
    try:
        return platformdirs.user_cache_path("gru-lm")
    except RuntimeError:  # neither HOME nor an entry for this user
        return None


def _temporary_root() -> Path | None:
    """A fixed name, so that cached kernels are found by later commands."""
    try:
        return Path(tempfile.gettempdir()) / f"gru-lm-{os.geteuid()}"
    except OSError:
        return None


@functools.cache
def _passing_root() -> Path:
    """A directory removed at exit; used if another user owns the fixed name."""
    path = Path(tempfile.mkdtemp(prefix="gru-lm-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _prepare(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "it is not a directory") from error
    if not _is_ours(path.lstat()):  # also checks the owner of a symbolic link
        raise PermissionError(errno.EACCES, "it belongs to another user")
    _must_be_ours(path, path.stat())


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid()


def _must_be_ours(path: Path, status: os.stat_result) -> None:
    if not _is_ours(status):
        raise PermissionError(errno.EACCES, "it belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EACCES, f"others may write to it (chmod go-w {path})")
