"""`python -m benchmarks`: help and usage errors run no benchmarks and change no results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "usage: python -m benchmarks"),
        (["slow", "--help"], 0, "usage: python -m benchmarks slow"),
        (["--hepl"], 2, "unrecognized arguments: --hepl"),
        (["qualty"], 2, "invalid choice: 'qualty'"),
        (["slow", "a", "b", "c"], 2, "unrecognized arguments: c"),
    ],
)
def test_help_and_mistakes(arguments: list[str], code: int, says: str) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before
