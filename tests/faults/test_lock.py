"""Locking: of two trainers on one run, one wins; the other changes nothing and exits with code 5."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gru_lm.training.checkpoint import read
from tests.conftest import TINY, Program, interrupt, wait_for, words
from tests.inside import error, inside, listing

# Trains one run to have everything imported, then forks both racers of each pair at the same moment. The
# winner waits before training until the other has exited, so that the race is never over too early.
RACES = """
import json, os, sys, time
from pathlib import Path
import gru_lm.cli
from gru_lm.commands.train import run as train_run

def racer(name, other, args):
    original = train_run._fit
    def fit(*a, **o):
        deadline = time.monotonic() + 5
        while not Path(other).exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        return original(*a, **o)
    train_run._fit = fit
    err = os.open(name + ".err", os.O_WRONLY | os.O_CREAT)
    os.dup2(err, 1)
    os.dup2(err, 2)
    started = time.monotonic()
    code = gru_lm.cli.run(args, started=started)
    seconds = time.monotonic() - started
    Path(name + ".tmp").write_text(json.dumps([code, seconds]))
    Path(name + ".tmp").rename(name)

commands, warm = json.loads(sys.argv[1])
assert gru_lm.cli.run(warm, started=time.monotonic()) == 0

for number, args in enumerate(commands):
    names = [f"{number}a", f"{number}b"]
    children = []
    for name, other in (names, names[::-1]):
        child = os.fork()
        if child == 0:
            try:
                racer(name, other, args)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
"""


def races(folder: Path, commands: list[list[object]]) -> None:
    """Run every command in two processes at once; exactly one must win."""
    plain = [[str(arg) for arg in command] for command in commands]
    warm = ["train", "text.txt", "--steps", "2", *TINY]
    done = subprocess.run(
        [sys.executable, "-c", RACES, json.dumps([plain, warm])],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    for number in range(len(commands)):
        ends = [json.loads((folder / f"{number}{name}").read_text()) for name in "ab"]
        texts = [(folder / f"{number}{name}.err").read_text() for name in "ab"]
        codes = [code for code, _ in ends]
        assert sorted(codes) == [0, 5], texts
        loser = codes.index(5)
        assert "is in use by another trainer" in texts[loser]
        assert "hint: " in texts[loser]
        assert ends[loser][1] < 3


def pairs(folder: Path, count: int) -> None:
    """Races to create `count` runs, then to resume them; results equal those of a run without a race."""
    (folder / "text.txt").write_text(words(200), encoding="utf-8")
    runs = [folder / f"run-{number}" for number in range(count)]
    options = [*TINY, "--steps", 20]
    races(folder, [["train", "text.txt", "--out", run, *options] for run in runs])
    inside(folder, "train", "text.txt", "--out", "lone", *options)
    last = "step-00000020.safetensors"
    whole = (folder / "lone" / last).read_bytes()
    for run in runs:
        assert (run / last).read_bytes() == whole
        (run / last).unlink()  # leave some steps to be resumed
    for path in folder.glob("[0-9]*"):
        path.unlink()
    races(folder, [["train", "--resume", run] for run in runs])
    for run in runs:
        assert (run / last).read_bytes() == whole
        assert not list(run.glob(".*.tmp"))


def test_3_pairs_of_trainers(tmp_path: Path) -> None:
    pairs(tmp_path, 3)


@pytest.mark.slow
def test_20_pairs_of_trainers(tmp_path: Path) -> None:
    pairs(tmp_path, 20)


def test_the_loser_changes_no_byte_and_a_dead_winner_holds_nothing(
    tmp_path: Path, program: Program
) -> None:
    (tmp_path / "text.txt").write_text(words(200), encoding="utf-8")
    options = ["train", "text.txt", "--out", "run", *TINY, "--steps", 100_000]
    winner = program.start(*options)
    run = tmp_path / "run"
    wait_for((run / "metrics.jsonl").exists)
    winner.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.05)
        before = listing(run)
        for command in (options, ["train", "--resume", "run"]):
            started = time.monotonic()
            message = error(tmp_path, *command, code=5)
            assert time.monotonic() - started < 3
            assert "run is in use by another trainer" in message
        assert inside(tmp_path, "info", "run", "--json").json()["step"] == 0, (
            "reading needs no lock"
        )
        assert listing(run) == before
    finally:
        winner.send_signal(signal.SIGCONT)
        interrupt(winner, signal.SIGKILL)
    assert "already contains a run" in error(tmp_path, *options, code=2), (
        "the lock went with its holder"
    )
    assert read(run / "step-00000000.safetensors").meta["step"] == 0
