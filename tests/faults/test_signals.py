"""Signals at any moment leave a valid checkpoint or no run, the right exit code, and how to resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gru_lm.training.checkpoint import read
from tests.conftest import TINY, Program, interrupt, own_cache, wait_for, words
from tests.faults.hold_at import POINTS
from tests.inside import inside

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
OPTIONS = [*TINY, "--steps", 8, "--save-every", 2, "--eval-every", 4, "--dropout", 0.2]
HOLD_AT = Path(__file__).with_name("hold_at.py")
PREPARING = ("tokenising",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text.txt").write_text(words(400), encoding="utf-8")
    own_cache(tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path


def held(folder: Path, point: str) -> subprocess.Popen[bytes]:
    """A training process that has reached `point`."""
    process = subprocess.Popen(
        [sys.executable, HOLD_AT, point, "train", "text.txt", "--out", "run", *map(str, OPTIONS)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: (folder / "here").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def assert_resumable(folder: Path) -> None:
    """Assert that the run is valid, and resumes to the bytes of an uninterrupted run."""
    run = folder / "run"
    assert not list(run.glob(".*.tmp"))
    for path in run.glob("*.safetensors"):
        read(path)
    inside(folder, "train", "--resume", "run")
    inside(folder, "train", "text.txt", "--out", "whole", *OPTIONS)
    for name in ("step-00000008.safetensors", "best.safetensors", "samples.txt"):
        assert (run / name).read_bytes() == (folder / "whole" / name).read_bytes(), name


# Several points, and every signal at least once; the slow test has all combinations.
QUICK = [
    ("tokenising", signal.SIGINT),
    ("first step", signal.SIGTERM),
    ("mid-step", signal.SIGHUP),
    ("validation", signal.SIGTERM),
    ("saving", signal.SIGINT),
]


def met(folder: Path, point: str, signum: int) -> None:
    process = held(folder, point)
    started = time.monotonic()
    out, err = interrupt(process, signum)
    assert time.monotonic() - started < 8  # includes the plot, on a busy machine
    assert process.returncode == SIGNALS[signal.Signals(signum)]
    assert "Traceback" not in err
    assert out == ""
    if point in PREPARING:
        left = {path.name for path in folder.iterdir()}
        assert left == {"text.txt", "cache", "here"}, "nothing of the run is left"
        assert not list((folder / "cache").rglob("*.tmp"))
        assert "stopped" in err
        return
    assert "to resume: gru-lm train --resume run" in err
    assert "saved in run" in err
    assert_resumable(folder)


@pytest.mark.parametrize(("point", "signum"), QUICK)
def test_a_signal_at_any_moment(point: str, signum: int, folder: Path) -> None:
    met(folder, point, signum)


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("point", POINTS)
def test_every_signal_at_every_point(point: str, signum: int, folder: Path) -> None:
    met(folder, point, signum)


def test_a_second_interrupt_leaves_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALS", "2")
    process = held(folder, "mid-step")
    newest = sorted((folder / "run").glob("step-*"))[-1]
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    started = time.monotonic()
    _, text = interrupt(process, signal.SIGINT)
    assert time.monotonic() - started < 3, "what torch takes to leave"
    err = text.encode()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"--resume" not in err, "it left without saving"
    assert not (folder / "run" / "loss.png").exists(), "and without a plot"
    assert sorted((folder / "run").glob("step-*"))[-1] == newest
    assert_resumable(folder)


def test_a_signal_while_the_text_is_piped_in(folder: Path, program: Program) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gru_lm", "train", "-", "--out", "piped", *map(str, OPTIONS)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(b"the cat sat\n" * 10_000)
    process.stdin.flush()
    wait_for(lambda: bool(list((folder / "piped").glob(".text.txt.*"))))
    os.kill(process.pid, signal.SIGTERM)
    try:
        assert process.wait(5) == 143, "without more input, or its end"
    finally:
        process.kill()
        process.communicate()
    assert not (folder / "piped").exists()


def test_a_parent_that_ignores_hangups_means_it(folder: Path, program: Program) -> None:
    """As with nohup."""
    options = ["train", "text.txt", "--out", "run", *TINY, "--steps", 200]
    process = program.start(
        *options, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_for((folder / "run" / "metrics.jsonl").exists)
    os.kill(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert read(folder / "run" / "step-00000200.safetensors").meta["step"] == 200


@pytest.mark.slow
def test_50_signals_in_a_second(folder: Path) -> None:
    process = held(folder, "mid-step")
    for index in range(50):
        try:
            os.kill(process.pid, [signal.SIGTERM, signal.SIGHUP][index % 2])
        except ProcessLookupError:
            break
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    # A signal during interpreter shutdown may still kill the process.
    assert process.returncode in (143, 129, -signal.SIGTERM, -signal.SIGHUP), err
    assert b"Traceback" not in err
    assert b"reentrant" not in err
    assert err.count(b"to resume") == 1
    assert_resumable(folder)
