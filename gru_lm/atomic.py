"""The only writer of durable bytes: a file is its old content or its new content, never between.

Write to an exclusive temporary name in the same directory, fsync, rename, fsync the directory. A
temporary carries its writer's process id, so that the next run can sweep those of the dead. Knows
nothing of what the bytes mean.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gru_lm.errors import EnvironmentProblem

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp$")


def fsync_directory(directory: Path) -> None:
    """Make renames and removals in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write and seek in; it becomes `path` when the block ends well.

    Raises EnvironmentProblem, with the path, where the disk is full or refuses; the old `path` is
    then untouched and the temporary is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            descriptor = os.open(
                temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            fsync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise disk_problem(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically and durably."""
    try:
        with replacing(path) as file:
            file.write(data)
    except EnvironmentProblem as error:
        error.message += f" ({len(data):,} bytes)"
        raise


def link(source: Path, path: Path) -> None:
    """Make `path` another name of `source`'s bytes, atomically; a copy where links are refused."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.unlink()
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


def sweep(directory: Path) -> None:
    """Remove the temporaries in `directory` that dead processes left behind."""
    for path in directory.glob(".*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match and not _alive(int(match.group(1))):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # our own temporaries are open only inside `replacing`
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def disk_problem(path: Path, error: OSError) -> EnvironmentProblem:
    """Convert an OSError at `path` to an EnvironmentProblem with a hint on how to fix it."""
    hint = {
        errno.ENOSPC: "free some space there, then run the same command again (or --resume)",
        errno.EDQUOT: "free some of your disk quota, then run the same command again (or --resume)",
        errno.EFBIG: "raise the file size limit (ulimit -f), then run the same command again",
        errno.EACCES: "choose a directory with write permission",
        errno.EROFS: "choose a directory on a writable file system",
    }.get(error.errno or 0)
    return EnvironmentProblem(f"cannot write {path}: {error.strerror or error}", hint=hint)
