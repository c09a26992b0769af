"""The examples of lists: their scripts run from an empty folder, and print what their README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", [pytest.param("names", marks=pytest.mark.slow), "molecules"])
def test_an_example_runs_from_an_empty_folder(name: str, tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent  # gru-lm, and python3 of the same version
    done = subprocess.run(
        ["sh", str(EXAMPLES / name / "run.sh"), "--steps", "60", "--threads", "1"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    known = set((tmp_path / f"{name}.txt").read_text(encoding="utf-8").splitlines())
    new = (tmp_path / "new.txt").read_text(encoding="utf-8").splitlines()
    assert len(new) == len(set(new)) == 200
    assert known.isdisjoint(new)
    checked = "200 names, 200 different, 200 new" if name == "names" else "200 molecules, "
    assert checked in done.stdout
