"""Exact resume: a run stopped at any step and resumed ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gru_lm import cli
from gru_lm.commands.train.run import resume
from tests.conftest import TINY, Program, interrupt, wait_for, words
from tests.inside import inside

STEPS = 60
KEEP_ALL = ["--save-every", 1, "--keep", 1000]
# With dropout, two layers and a carried state; an epoch ends between steps 10 and 20.
OPTIONS = [*TINY, "--steps", STEPS, "--dropout", 0.3, "--layers", 2, "--bptt", 16]
OPTIONS += ["--eval-every", 25]


def final(run: Path) -> dict[str, bytes]:
    """Bytes that must not depend on interruptions: checkpoints, samples, and metrics except times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    timed = ("seconds", "tokens_per_second")
    plain = [
        {name: value for name, value in report.items() if name not in timed}
        for report in reports
        if report["step"] <= 10 or "valid_perplexity" in report  # later losses average over time
    ]
    return {
        "last": (run / f"step-{STEPS:08d}.safetensors").read_bytes(),
        "best": (run / "best.safetensors").read_bytes(),
        "samples": (run / "samples.txt").read_bytes(),
        "metrics": json.dumps(plain).encode(),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, and whose every step is kept."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text(words(100), encoding="utf-8")
    Program(folder)("train", "text.txt", "--out", "run", *OPTIONS, *KEEP_ALL)
    meta = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert meta["tokens"] > 2 * len(words(100)), "more than two epochs"
    return folder / "run"


def test_every_step_in_one_process(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gru_lm.commands.train.run.loss_png", lambda *_: b"")  # 61 plots are slow
    expected = final(whole)
    for step in range(STEPS + 1):
        run = tmp_path / f"run-{step}"
        run.mkdir()
        for name in ("config.toml", "metrics.jsonl", "samples.txt"):
            if (whole / name).exists():
                shutil.copy(whole / name, run)
        shutil.copy(whole / f"step-{step:08d}.safetensors", run)
        best = json.loads(_meta(run / f"step-{step:08d}.safetensors"))["best_step"]
        if best >= 0:
            shutil.copy(whole / f"step-{best:08d}.safetensors", run / "best.safetensors")
        # The state of the global random generators must not matter.
        torch.manual_seed(random.randrange(2**31))
        np.random.seed(step)
        random.seed(step + 1)
        result = resume(run, threads=1)
        assert result["steps"] == STEPS
        assert final(run) == expected, f"resumed after step {step}"


def _meta(path: Path) -> str:
    from gru_lm.training.checkpoint import read

    return json.dumps(read(path).meta)


def stopped_at(step: int, *command: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a new process that stops right after `step`."""
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("stop_at.py"), str(step)),
            *map(str, command),
        ],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr.decode()
    assert b"--resume" in done.stderr
    return done


def stop_and_resume(folder: Path, step: int) -> Path:
    """A run stopped right after `step` and resumed, each in a new process."""
    run = folder / f"stopped-{step}"
    stopped_at(step, "train", folder / "text.txt", "--out", run, *OPTIONS, *KEEP_ALL)
    Program(folder)("train", "--resume", run)
    return run


@pytest.mark.slow
def test_a_stop_before_anything_was_measured_anew(whole: Path, tmp_path: Path) -> None:
    """A stop while the text is still being surveyed; the best checkpoint remains usable."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    done = stopped_at(0, "train", "--resume", run, "--steps", 9, "--json")
    result = json.loads(done.stdout)
    assert (result["stopped"], result["steps"], result["valid"]) == ("signal", STEPS, None)
    assert result["checkpoint"] == str(run / "best.safetensors")
    inside(tmp_path, "eval", run)


@pytest.mark.parametrize("step", [0, 17])
def test_a_few_steps_in_fresh_processes(whole: Path, step: int) -> None:
    run = stop_and_resume(whole.parent, step)
    assert final(run) == final(whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS + 1))
def test_every_step_in_fresh_processes(whole: Path, step: int) -> None:
    run = stop_and_resume(whole.parent, step)
    assert final(run) == final(whole)


def test_two_runs_of_one_seed_are_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed.txt").write_text(words(100), encoding="utf-8")
    Program(tmp_path)("train", "renamed.txt", "--out", "deep/b", *OPTIONS, *KEEP_ALL)
    assert final(tmp_path / "deep/b") == final(whole)


def test_a_kill_loses_no_more_than_since_the_last_save(
    whole: Path, tmp_path: Path, program: Program
) -> None:
    (tmp_path / "text.txt").write_text(words(100), encoding="utf-8")
    process = program.start("train", "text.txt", "--out", "killed", *OPTIONS, *KEEP_ALL)
    wait_for((tmp_path / "killed" / "step-00000010.safetensors").exists)
    interrupt(process, signal.SIGKILL)
    done = program("train", "--resume", "killed")
    assert "resuming killed after step" in done.stderr
    assert final(tmp_path / "killed") == final(whole)


def test_what_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(code: int, *args: object) -> str:
        assert cli.run(["train", *map(str, args)], started=time.monotonic()) == code
        return capsys.readouterr().err

    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(words(100), encoding="utf-8")
    said(0, text, "--out", run, *OPTIONS)
    assert "threads 2 instead of 1" in said(0, "--resume", run, "--threads", 2)

    config = run / "config.toml"
    before = config.read_text()
    config.write_text(before.replace("dropout = 0.3", "dropout = 0.2"))
    assert "config.toml was changed: dropout" in said(2, "--resume", run)
    config.write_text(before)

    content = text.read_bytes()
    text.write_bytes(content.replace(b"cat", b"bat", 1))
    message = said(3, "--resume", run)
    assert "has changed since the run started" in message
    assert f"--from {run}" in message
    text.write_bytes(content)
    assert "instead of" not in said(0, "--resume", run)
    assert "--resume" in said(2, "--resume", run, "--lr", 1)
