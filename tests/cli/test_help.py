"""`--help` of every command: its panels, and its examples, which are run."""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest

from gru_lm.cli import COMMANDS
from gru_lm.cli.options import COMMON, MOST_COMMON
from tests.conftest import Program, words
from tests.inside import inside
from tests.lists import list_run, names

TINY = "--steps 2 --threads 1 --width 8 --layers 1 --batch 4 --bptt 16"
# Options that make an example fast.
QUICK = {
    "train": TINY,
    "compare": TINY + " --seeds 1 --match width",
    "bench": "--seconds 0.1 --cells gru --width 16",
    "sample": "--seed 1",  # a model of few steps may draw any control character
}
LEAVES = [[name] for name in COMMANDS] + [["corpus", name] for name in ("list", "get", "show")]
LEAVES.append(["cache", "clear"])


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def help_of(*command: str) -> str:
    return inside(Path(), *command, "--help").out


@pytest.mark.parametrize("command", [*LEAVES, ["corpus"], ["cache"], []], ids=" ".join)
def test_flags_take_no_value(command: list[str]) -> None:
    assert "bool" not in help_of(*command)


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_common_options_come_first(command: list[str]) -> None:
    text = help_of(*command)
    panels = [line for line in text.splitlines() if line.startswith("╭─")]
    options = [panel for panel in panels if "Arguments" not in panel]
    assert COMMON in options[0]
    common = text.partition(COMMON)[2].partition("╰")[0]
    rows = [line for line in common.splitlines() if line.startswith("│ --")]
    assert 1 <= len(rows) <= MOST_COMMON
    assert rows[-1].startswith("│ --help")


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_help_ends_with_two_examples(command: list[str]) -> None:
    _, _, end = help_of(*command).partition("Examples:")
    lines = [line.strip() for line in end.splitlines() if line.strip()]
    assert len(lines) == 2
    assert all(line.startswith(f"gru-lm {' '.join(command)}") for line in lines)


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in COMMANDS for number in range(2)]
)
def test_examples_run(tmp_path: Path, trained: Path, name: str, number: int) -> None:
    for run in ("gru-1", "lstm-1"):
        shutil.copytree(trained, tmp_path / "runs" / run)
    if name == "sample":
        list_run(tmp_path / "runs" / "names", names(300), steps=20, shared=True)
    for text in ("mytext.txt", "other.txt"):
        (tmp_path / text).write_text(words(300), encoding="utf-8")
    words_of_it = shlex.split(COMMANDS[name].examples[number])
    quick = [] if "--on" in words_of_it else shlex.split(QUICK.get(name, ""))
    # Samples are written as bytes and need a real standard output.
    run_it = Program(tmp_path) if name == "sample" else partial(inside, tmp_path)
    run_it(*words_of_it[1:], *quick)


def test_compare_says_its_own_defaults() -> None:
    text = " ".join(help_of("compare").replace("│", " ").split())
    assert "(default: 0.8,0.1,0.1)" in text
    assert "(default: 0.9,0.1)" not in text
    assert "Minutes per run (default: 1)" in text
    for name in ("--cell ", "--seed "):
        assert name not in text
