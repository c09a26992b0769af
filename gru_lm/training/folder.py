"""A directory that this process makes, locks and writes to; and gives up again.

Knows nothing of what lies in it. Invariants: no link is followed, and nothing but a regular file is
opened; only what this process made is removed.
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
    """Make what `--out` names, where it is not there; returns the directories made, outer ones first.

    Raises UsageError or EnvironmentProblem.
    """
    missing = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--out {out} is a file", hint="name a directory") from error
    except OSError as error:
        raise atomic.disk_problem(out, error) from error
    return missing[::-1]


def make_numbered(cell: str) -> list[Path]:
    """Make runs/<cell>-<n> for the first n that is free; returns the directories made."""
    made = []
    for number in count(1):
        out = Path("runs") / f"{cell}-{number}"
        try:
            if not out.parent.is_dir():
                out.parent.mkdir()
                made.append(out.parent)
        except FileExistsError as error:
            if out.parent.is_dir():  # which another process has just made
                continue
            raise UsageError(
                f"{out.parent} is not a directory, and runs would go there",
                hint="name a directory: --out DIRECTORY",
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
    """Remove files and directories, the later ones first; a directory that is not empty stays."""
    for path in reversed([*made]):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def is_plain(path: Path) -> bool:
    """Whether there is a regular file, not a link to one, at `path`."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def append(path: Path, text: str) -> None:
    """Add `text` to a file. Raises EnvironmentProblem."""
    descriptor = _opened(path, os.O_WRONLY | os.O_APPEND)
    try:
        with os.fdopen(descriptor, "a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise atomic.disk_problem(path, error) from error


def _opened(path: Path, flags: int) -> int:
    """The descriptor of a regular file, made if it is not there. Raises EnvironmentProblem."""
    try:
        # O_NONBLOCK: a FIFO must not make us wait before we can see that it is one.
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise atomic.disk_problem(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EnvironmentProblem(f"{path} is not a regular file", hint=f"mv {path} elsewhere")
    return descriptor


def lock(directory: Path) -> int:
    """The descriptor that holds a directory's lock until it is closed. Raises EnvironmentProblem."""
    path = directory / LOCK
    while True:
        descriptor = _opened(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that was discarded takes its lock file along: hold the one that is there.
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
