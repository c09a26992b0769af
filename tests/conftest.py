"""Shared fixtures: a separate cache, one thread, a small text, a trained run, gru-lm as a process."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# Use a temporary cache instead of the user's. Set before any test module is imported, since collecting
# them compiles the kernels; the workers of pytest-xdist inherit it.
if "GRU_LM_TESTS" not in os.environ:
    os.environ["GRU_LM_TESTS"] = tempfile.mkdtemp(prefix="gru-lm-tests-")
    atexit.register(shutil.rmtree, os.environ["GRU_LM_TESTS"], ignore_errors=True)
os.environ |= {"XDG_CACHE_HOME": os.environ["GRU_LM_TESTS"], "OMP_NUM_THREADS": "1"}
os.environ.pop("MPLCONFIGDIR", None)
# No deadlines: times vary on shared machines.
hypothesis.settings.register_profile("gru-lm", deadline=None)
hypothesis.settings.load_profile("gru-lm")

# The smallest run: a step takes almost no time.
TINY = "--tokenizer char --width 8 --layers 1 --embed 4 --batch 2 --bptt 8 --threads 1".split()


def own_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Give one test its own cache in `folder`, except for compiled kernels, which stay shared."""
    shared = Path(os.environ["XDG_CACHE_HOME"]) / "gru-lm" / "kernels"
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "gru-lm").mkdir(parents=True)
    (folder / "gru-lm" / "kernels").symlink_to(shared)
    patch.setenv("XDG_CACHE_HOME", str(folder))


def words(count: int, seed: int = 0) -> str:
    """A text of `count` words in lines, from a small vocabulary, so that a model can learn it."""
    rng = random.Random(seed)
    stock = "the cat sat on a mat and the dog, too: who knows? Ünïcode wörds".split()
    parts = [rng.choice(stock) + rng.choice([" "] * 7 + ["\n"]) for _ in range(count)]
    return "".join(parts) + "\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(words(400), encoding="utf-8")
    return path


class Program:
    """gru-lm as a real process."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def __call__(
        self, *args: object, code: int = 0, stdin: str | bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; fails if it exits with another code or prints a traceback."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "gru_lm", *map(str, args)],
            cwd=self.cwd,
            capture_output=True,
            timeout=120,
            **({"stdin": subprocess.DEVNULL} if data is None else {"input": data}),
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{out}\n{err}"
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        assert "\r" not in err
        return subprocess.CompletedProcess(done.args, code, out, err)

    def json(self, *args: object, **options: Any) -> Any:
        """The parsed JSON output of a command."""
        return json.loads(self(*args, "--json", **options).stdout)

    def error(self, *args: object, code: int, stdin: str | bytes | None = None) -> str:
        """The error message of a command; asserts at most three lines and an empty stdout."""
        done = self(*args, code=code, stdin=stdin)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
        assert len(lines) - start <= 3, done.stderr
        return "\n".join(lines[start:])

    def start(self, *args: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command, for example to send it a signal."""
        return subprocess.Popen(
            [sys.executable, "-m", "gru_lm", *map(str, args)],
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps on a small text, which is next to it as text.txt. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(words(400), encoding="utf-8")
    Program(folder)("train", "text.txt", "--out", "run", "--steps", 30, *TINY)
    return folder / "run"


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> tuple[str, str]:
    """Send a signal; returns the output of the process until it exits."""
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=60)
    return out.decode(), err.decode()
