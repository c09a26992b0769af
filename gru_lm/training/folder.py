"""Create, lock, write to and clean up output directories.

Independent of their contents. Invariants: symbolic links are not followed, only regular files are
opened, and only files and directories created by this process are removed.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from gru_lm import atomic
from gru_lm.errors import EnvironmentProblem, UsageError
from gru_lm.layout import LOCK


def make(out: Path) -> list[Path]:
    """Create the directory `out` and its missing parents; returns those created, outermost first.

    Raises UsageError if it is a file, EnvironmentProblem if it cannot be created.
    """
    missing = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--out {out} is a file", hint="choose a directory") from error
    except OSError as error:
        raise atomic.disk_problem(out, error) from error
    return missing[::-1]


def make_numbered(cell: str) -> list[Path]:
    """Create runs/<cell>-<n> with the first free n; returns the directories created."""
    made = []
    for number in count(1):
        out = Path("runs") / f"{cell}-{number}"
        try:
            if not out.parent.is_dir():
                out.parent.mkdir()
                made.append(out.parent)
        except FileExistsError as error:
            if out.parent.is_dir():  # created by another process in the meantime
                continue
            raise UsageError(
                f"{out.parent} is not a directory, so no run can be created in it",
                hint="choose another place: --out DIRECTORY",
            ) from error
        except OSError as error:
            raise atomic.disk_problem(out.parent, error) from error
        try:
            out.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise atomic.disk_problem(out, error) from error
        return [*made, out]
    raise AssertionError


def remove(made: Iterable[Path]) -> None:
    """Remove files and directories in reverse order; directories that are not empty are kept."""
    for path in reversed([*made]):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def is_plain(path: Path) -> bool:
    """Whether `path` is a regular file and not a symbolic link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def append(path: Path, text: str) -> None:
    """Append `text` to a file. Raises EnvironmentProblem."""
    descriptor = _opened(path, os.O_WRONLY | os.O_APPEND)
    try:
        with os.fdopen(descriptor, "a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise atomic.disk_problem(path, error) from error


def _opened(path: Path, flags: int) -> int:
    """Open a regular file, creating it if missing; returns its descriptor. Raises EnvironmentProblem."""
    try:
        # O_NONBLOCK: opening a FIFO must not block before its type is checked.
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise atomic.disk_problem(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EnvironmentProblem(f"{path} is not a regular file", hint=f"mv {path} elsewhere")
    return descriptor


def lock(directory: Path) -> int:
    """Lock a directory; returns the descriptor that holds the lock. Raises EnvironmentProblem."""
    path = directory / LOCK
    while True:
        descriptor = _opened(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A discarded run removes its lock file: check that this is still the current one.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise EnvironmentProblem(
                f"{directory} is in use by another trainer", hint="choose another --out, or wait"
            ) from error
        except FileNotFoundError:
            pass
        os.close(descriptor)
