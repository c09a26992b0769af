"""Atomic, durable writes; the only module that writes files which must survive a crash.

A file is written under an exclusive temporary name in the same directory, fsynced and renamed, and the
directory is fsynced. The writer holds a lock (flock) on its temporary file, so that other processes, in
any container, can tell which temporary files are abandoned. Independent of the content. Invariant: a
file holds either the old bytes or the new bytes, never a mixture.
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
    """Yield a binary file, seekable, that replaces `path` when the block ends without an exception.

    Its permissions are `mode` minus the umask. Raises EnvironmentProblem, naming the path, if writing
    fails; the old `path` is then unchanged and the temporary file is removed.
    """
    try:
        temporary, descriptor = _make_temporary(path, mode)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(path)  # before closing the file releases the lock
            fsync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise disk_problem(path, error) from error


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `data`, with permissions `mode` minus the umask.

    Raises EnvironmentProblem, naming path and size, if writing fails.
    """
    try:
        with replacing(path, mode=mode) as file:
            file.write(data)
    except EnvironmentProblem as error:
        error.message += f" ({len(data):,} bytes)"
        raise


def link(source: Path, path: Path) -> None:
    """Make `path` a hard link to `source`, atomically; copy if hard links are not supported."""
    temporary = _temporary_name(path)
    try:
        os.link(source, temporary)
        try:
            temporary.rename(path)
            # rename() does nothing if both names already refer to the same file.
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
    """Remove temporary files in `directory` whose writers have died.

    On a file system without locks, no temporary file is removed.
    """
    for path in directory.glob(".*.tmp"):
        if is_temporary(path.name):
            with suppress(OSError):  # in use or already removed
                _remove_unlocked(path)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def _make_temporary(path: Path, mode: int) -> tuple[Path, int]:
    """Create a locked temporary file next to `path`; return its path and descriptor."""
    while True:
        temporary = _temporary_name(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, mode)
        if _claimed(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)


def _claimed(descriptor: int, path: Path) -> bool:
    """Lock the temporary file just created at `path`; False if a sweep removed it meanwhile."""
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
    """Convert an OSError at `path` to an EnvironmentProblem with a hint on how to fix it."""
    hint = {
        errno.ENOSPC: "free some space there, then run the same command again (or --resume)",
        errno.EDQUOT: "free some of your disk quota, then run the same command again (or --resume)",
        errno.EFBIG: "raise the file size limit (ulimit -f), then run the same command again",
        errno.EACCES: "choose a directory with write permission",
        errno.EROFS: "choose a directory on a writable file system",
        errno.EISDIR: "move that directory elsewhere",
        errno.ELOOP: "remove the link: links are not followed",
    }.get(error.errno or 0)
    return EnvironmentProblem(f"cannot write {path}: {error.strerror or error}", hint=hint)
