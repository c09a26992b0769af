"""Where the caches lie: compiled kernels, tokenized texts, corpora, and what matplotlib keeps.

Each is a folder of mode 0700 in the user's cache. Where that cannot be used (no home directory, a
read-only or full disk, a file in its place), it is a folder among the temporary files, and a note says
so once. Knows nothing of what the files mean. Invariant: a file or folder that belongs to another user,
or that others may write, is not used.
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

KERNELS, TOKENS, CORPORA, MATPLOTLIB = NAMES = ("kernels", "tokens", "corpora", "matplotlib")
LOCK = ".lock"  # of a cache's folder; removing it would give two processes a lock each
UNUSED_DAYS = 30
MOST_BYTES = 10 * 10**9  # of one cache; a tenth of the disk, where that is less
_HINT = "XDG_CACHE_HOME=DIRECTORY names another place"

# Who hears of caches that cannot be used; the command line prints it.
listener: Callable[[str], None] = functools.partial(warnings.warn, stacklevel=3)


_said: set[tuple[str, ...]] = set()


def say(text: str, *about: str) -> None:
    """Tell the listener, once for each text, or for what it is about."""
    if (about or (text,)) not in _said:
        _said.add(about or (text,))
        listener(text)


def folder(name: str, *, failed: Path | None = None) -> Path:
    """The folder of one of NAMES, ready to be written; temporaries of dead processes are swept.

    `failed` is one in which writing failed: the next place is taken. Raises EnvironmentProblem where
    there is no place at all, not even for temporary files.
    """
    problem, why = "", ""
    for root in _roots():
        if root is None:
            problem = "no home directory to keep a cache in"
            continue
        path = root / name
        try:
            if path == failed:
                raise OSError("it cannot be written")
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
        if problem:  # one note for all folders, if the reason is one
            say(f"{problem}; using {root} ({_HINT})", why, str(root))
        return path
    raise EnvironmentProblem(problem, why="nor is there room among the temporary files", hint=_HINT)


def opened(path: Path) -> BinaryIO:
    """A file of a cache, to be read. Raises OSError unless it is a regular file that is ours alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        _must_be_ours(path, found)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def mark_used(path: Path) -> None:
    """Make a file the most recently used one."""
    with suppress(OSError):
        os.utime(path)


def trim(directory: Path, pattern: str, *, keep: Collection[Path] = ()) -> None:
    """Remove files that nobody used for UNUSED_DAYS, then the least recently used beyond the bound.

    Those of `keep` stay.
    """
    files = []
    for path in directory.glob(pattern):
        with suppress(OSError):
            found = path.lstat()
            files.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in files)
    oldest, most = time.time() - UNUSED_DAYS * 24 * 3600, bound(directory)
    for used, size, path in sorted(files):
        if (used < oldest or total > most) and path not in keep:
            remove(path)
            total -= size


def bound(directory: Path) -> int:
    """How many bytes a cache may hold."""
    return min(MOST_BYTES, shutil.disk_usage(directory).total // 10)


def remove(path: Path) -> None:
    """Remove what is at `path`, whatever it is, as far as that is possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def usage() -> list[dict[str, Any]]:
    """The folders that there are: name, path, number of files, bytes."""
    return [
        {"name": name, "path": str(path), "files": len(sizes), "bytes": sum(sizes)}
        for name, path in _folders(NAMES)
        for sizes in [[size for _, size in _contents(path)]]
    ]


def clear(names: Sequence[str] = NAMES) -> dict[str, int]:
    """Remove what is in the caches of these names; how many `files` and `bytes` that were.

    What a process is writing at the moment stays. Raises UsageError for a name that is not known, and
    EnvironmentProblem for a file that cannot be removed.
    """
    for name in names:
        if name not in NAMES:
            raise unknown_name("cache", name, NAMES)
    count = size = 0
    for _, path in _folders(names):
        atomic.sweep(path)
        for file, bytes_ in _contents(path):
            if not any(part == LOCK or atomic.is_temporary(part) for part in file.parts):
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise EnvironmentProblem(
                        f"cannot remove {file}: {error.strerror}", hint=f"rm -r {path}"
                    ) from error
                count, size = count + 1, size + bytes_
        for parent, folders, _ in os.walk(path, topdown=False):
            for each in folders:
                with suppress(OSError):  # where something is left
                    Path(parent, each).rmdir()
    return {"files": count, "bytes": size}


def _folders(names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The folders of these names that exist, in the user's cache and among the temporary files."""
    for root in filter(None, (_user_root(), _temporary_root())):
        for path in (root / name for name in names):
            if path.is_dir() and _is_ours(root.lstat()) and _is_ours(path.lstat()):
                yield path.name, path


def _contents(directory: Path) -> Iterator[tuple[Path, int]]:
    """The files below a directory, with their sizes; no link is followed below it."""
    for parent, folders, names in os.walk(directory):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in (*names, *links)):
            with suppress(OSError):
                yield path, path.lstat().st_size


def _roots() -> Iterator[Path | None]:
    """Where caches may lie, in the order in which they are tried; None: there is no home directory."""
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
    """Kept between commands: without it, each one would compile the kernels."""
    try:
        return Path(tempfile.gettempdir()) / f"gru-lm-{os.geteuid()}"
    except OSError:
        return None


@functools.cache
def _passing_root() -> Path:
    """Gone with this process: the place for when somebody else has taken the other's name."""
    path = Path(tempfile.mkdtemp(prefix="gru-lm-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _prepare(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "it is not a directory") from error
    if not _is_ours(path.lstat()):  # perhaps a link, and then of one who may say where it leads
        raise PermissionError(errno.EACCES, "it belongs to another user")
    _must_be_ours(path, path.stat())


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid()


def _must_be_ours(path: Path, found: os.stat_result) -> None:
    if not _is_ours(found):
        raise PermissionError(errno.EACCES, "it belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EACCES, f"others may write to it (chmod go-w {path})")
