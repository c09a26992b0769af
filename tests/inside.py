"""Runs gru-lm in the process of the test, to save seconds where a real process proves no more."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gru_lm import cli


@dataclass
class Done:
    """Result of a command: exit code and output."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def inside(cwd: Path, *args: object, code: int = 0) -> Done:
    """Run one command line in `cwd`; fails if it exits with another code than `code`."""
    out, err = io.StringIO(), io.StringIO()
    with (
        Path(os.devnull).open() as nothing,
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "stdin", nothing)
        found = cli.run([str(arg) for arg in args], started=time.monotonic())
    done = Done(found, out.getvalue(), err.getvalue())
    assert found == code, f"exit {found}, not {code}\n{done.out}\n{done.err}"
    assert "Traceback" not in done.err
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.err
    return done


def error(cwd: Path, *args: object, code: int) -> str:
    """The error message of a command; asserts at most three lines and an empty stdout."""
    done = inside(cwd, *args, code=code)
    assert done.out == ""
    lines = done.err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - start <= 3, done.err
    return "\n".join(lines[start:])


def listing(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<not a file>"
        for path in sorted(folder.rglob("*"))
    }
