"""The n-best rescoring example: the formula in its docstring, and invalid tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Program

RESCORE = Path(__file__).parents[2] / "examples" / "nbest" / "rescore.py"
ROWS = [
    ("a", -10.0, -5.0, "the cat sat"),
    ("a", -11.0, -4.5, "the mat sat"),
    ("b", -3.0, -2.0, "who knows"),
    ("b", -3.5, -1.0, "who nose"),
    ("b", -2.5, -3.0, "whoknows"),
]
HEADER = "utt\trank\tacoustic_ln\tlm_ln\thyp\n"


def rescored(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RESCORE), *map(str, args)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)


def test_scores_are_those_of_the_formula(trained: Path, program: Program, tmp_path: Path) -> None:
    table = tmp_path / "nbest.tsv"
    table.write_text(HEADER + "".join(f"{u}\t1\t{a}\t{o}\t{h}\n" for u, a, o, h in ROWS))
    answers = program(
        "eval", trained, "-", "--per-line", "-", stdin="".join(f"{h}\n" for *_, h in ROWS)
    )
    nats = [float(line.split("\t")[2]) for line in answers.stdout.splitlines()[1:]]
    scored = [
        (u, a + 2 * (0.75 * o - 0.25 * n), h) for (u, a, o, h), n in zip(ROWS, nats, strict=True)
    ]
    expected = [max(row for row in scored if row[0] == utterance) for utterance in "ab"]

    done = rescored(trained, table, "--scale", 2, "--weight", 0.25)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{u}\t{s:.2f}\t{h}\n" for u, s, h in expected)


@pytest.mark.parametrize("row", ["a\t1\t-10.0", "a\t1\t-10.0\tx\tthe cat", "a\t1\t\t-5.0\tthe cat"])
def test_a_missing_field_is_named_by_file_and_line(row: str, trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "nbest.tsv"
    table.write_text(HEADER + "a\t1\t-10.0\t-5.0\tthe cat\n" + row + "\n")
    done = rescored(trained, table)
    assert done.returncode == 3
    assert f"{table}, line 3" in done.stderr
    assert done.stdout == ""


def test_what_cannot_be_read_is_named(trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "nbest.tsv"
    done = rescored(trained, table)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"error: {table}: No such file or directory\n"
    table.write_bytes(HEADER.encode() + "a\t1\t-10.0\t-5.0\tété\n".encode("latin-1"))
    done = rescored(trained, table)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {table}, line 2: 'utf-8' codec can't decode")
    table.write_text(HEADER + "\na\t1\t-10.0\t-5.0\t" + "x" * 140_000 + "\n")
    done = rescored(trained, table)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {table}, line 3: field larger than")
