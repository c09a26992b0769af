"""The only writer of durable bytes: a file is its old content or its new content, never between.

Write to an exclusive temporary name in the same directory, fsync, rename, fsync the directory. The
writer holds a lock (flock) on its temporary, so that another process, in whatever container, can tell
which temporaries are abandoned. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gru_lm.errors import EnvironmentProblem
from gru_lm.layout import is_temporary


def fsync_directory(directory: Path) -> None:
    """Make renames and removals in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A binary file to write and seek in; it becomes `path` when the block ends well.

    Its mode is `mode` less the umask. Raises EnvironmentProblem, with the path, where the disk is full
    or refuses; the old `path` is then untouched and the temporary is gone.
    """
    try:
        temporary, descriptor = _make_temporary(path, mode)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(path)  # before the lock goes with the descriptor
            fsync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise disk_problem(path, error) from error


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `data`, atomically and durably; with `mode` less the umask."""
    try:
        with replacing(path, mode=mode) as file:
            file.write(data)
    except EnvironmentProblem as error:
        error.message += f" ({len(data):,} bytes)"
        raise


def link(source: Path, path: Path) -> None:
    """Make `path` another name of `source`'s bytes, atomically; a copy where links are refused."""
    temporary = _temporary_name(path)
    try:
        os.link(source, temporary)
        try:
            temporary.rename(path)
            # rename() does nothing where both names are already one file.
            temporary.unlink(missing_ok=True)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)
    except OSError:
        write_bytes(path, source.read_bytes())


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """A temporary folder in `directory`, mode 0700, removed when the block ends.

    After a SIGKILL, the next `sweep` removes it. Raises OSError.
    """
    while True:
        folder = _temporary_name(directory / "scratch")
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _claimed(descriptor, folder):
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(directory: Path) -> None:
    """Remove the temporaries in `directory` whose writers are dead.

    On a file system without locks all temporaries stay.
    """
    for path in directory.glob(".*.tmp"):
        if is_temporary(path.name):
            with suppress(OSError):  # in use, or gone
                _remove_unlocked(path)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def _make_temporary(path: Path, mode: int) -> tuple[Path, int]:
    """A new locked file beside `path`, and its descriptor."""
    while True:
        temporary = _temporary_name(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, mode)
        if _claimed(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)


def _claimed(descriptor: int, path: Path) -> bool:
    """Lock the temporary just made at `path`; False if a sweep removed it in between."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is swept
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_unlocked(path: Path) -> None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags | os.O_RDWR)  # NFS locks only files open for writing
    except IsADirectoryError:
        descriptor = os.open(path, flags | os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def disk_problem(path: Path, error: OSError) -> EnvironmentProblem:
    """An OSError at `path` as an error that says what would mend it."""
    hint = {
        errno.ENOSPC: "free some space there, then run the same command again (or --resume)",
        errno.EDQUOT: "free some of your quota there, then run the same command again",
        errno.EFBIG: "raise the file size limit (ulimit -f), then run the same command again",
        errno.EACCES: "choose a directory that you may write to",
        errno.EROFS: "choose a directory that you may write to",
        errno.EISDIR: "move that directory elsewhere",
        errno.ELOOP: "remove the link: links are not followed",
    }.get(error.errno or 0)
    return EnvironmentProblem(f"cannot write {path}: {error.strerror or error}", hint=hint)
