"""Resuming a run with a new budget: a second leg, as robust against interruption as the first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gru_lm.training.checkpoint import read
from gru_lm.training.loop import TrainState
from tests.conftest import TINY, words
from tests.inside import error, inside

FIRST, SECOND = 10, 10
OPTIONS = [*TINY, "--dropout", 0.3, "--eval-every", 4, "--save-every", 1, "--keep", 1000]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoint(run: Path, step: int) -> Path:
    return run / f"step-{step:08d}.safetensors"


def final(run: Path) -> dict[str, object]:
    """Everything that must not depend on interruptions; in these short legs every step is reported."""
    timed = ("seconds", "tokens_per_second")
    return {
        "last": checkpoint(run, FIRST + SECOND).read_bytes(),
        "best": (run / "best.safetensors").read_bytes(),
        "samples": (run / "samples.txt").read_bytes(),
        "settings": (run / "config.toml").read_bytes(),
        "metrics": [{n: v for n, v in line.items() if n not in timed} for line in metrics(run)],
    }


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and the same after a second leg that nothing interrupted."""
    folder = tmp_path_factory.mktemp("legs")
    (folder / "text.txt").write_text(words(100), encoding="utf-8")
    inside(folder, "train", "text.txt", "--out", "one", *OPTIONS, "--steps", FIRST)
    shutil.copytree(folder / "one", folder / "two")
    inside(folder, "train", "--resume", "two", "--steps", SECOND)
    return folder / "one", folder / "two"


def test_the_rate_rises_and_falls_once_more_and_all_counts_go_on(legs: tuple[Path, Path]) -> None:
    lines = metrics(legs[1])
    reports = [line for line in lines if "lr" in line]
    assert [line["step"] for line in reports] == list(range(1, FIRST + SECOND + 1))
    assert len({line["tokens"] / line["step"] for line in lines}) == 1
    rates = [line["lr"] for line in reports]
    assert rates[:FIRST] == rates[FIRST:]
    assert rates[0] < max(rates) / 50
    assert rates[-1] < max(rates) / 30
    assert len(metrics(legs[0])) < len(lines)


def test_any_budget_starts_a_leg_and_replaces_the_old_one(
    legs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(legs[0], run)
    done = inside(tmp_path, "train", "--resume", run, "--tokens", 40, "--json").json()
    assert done["steps"] == FIRST + 3, "16 tokens a step"
    said = error(tmp_path, "train", "--resume", run, "--minutes", 0.01, code=2)
    assert "no training step fits" in said, "it was over before the first step"
    config = (run / "config.toml").read_text()
    assert "minutes = 0.01" in config
    assert "steps = " not in config
    assert "tokens = " not in config


@pytest.mark.parametrize("step", [FIRST, FIRST + 1, FIRST + 7])
def test_a_kill_in_the_second_leg_changes_nothing(
    step: int, legs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(legs[1], run)
    for later in range(step + 1, FIRST + SECOND + 1):
        checkpoint(run, later).unlink()
    best = read(checkpoint(run, step)).meta["best_step"]
    shutil.copy(checkpoint(run, best), run / "best.safetensors")
    if best == FIRST:  # its name was reused by the first checkpoint of the second leg
        shutil.copy(checkpoint(legs[0], best), run / "best.safetensors")
    inside(tmp_path, "train", "--resume", run)
    assert final(run) == final(legs[1])


def test_a_crash_between_the_settings_and_the_first_checkpoint(
    legs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The leg was not started, and can be started again."""
    run = tmp_path / "run"
    shutil.copytree(legs[0], run)
    config = run / "config.toml"
    config.write_text(config.read_text().replace(f"steps = {FIRST}", "epochs = 7.0"))
    done = inside(tmp_path, "train", "--resume", run, "--json")
    assert "config.toml is ignored: the run resumes with the budget of its newest" in done.err
    assert done.json()["steps"] == FIRST
    assert config.read_bytes() == (legs[0] / "config.toml").read_bytes()
    assert "is ignored" not in inside(tmp_path, "train", "--resume", run).err
    inside(tmp_path, "train", "--resume", run, "--steps", SECOND)
    assert final(run) == final(legs[1])


def test_the_checkpoint_knows_the_leg_where_the_settings_do_not(
    legs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(legs[1], run)
    checkpoint(run, FIRST + SECOND).unlink()
    config = run / "config.toml"
    config.write_text(config.read_text().replace(f"steps = {SECOND}", "steps = 12"))
    inside(tmp_path, "train", "--resume", run)
    assert final(run) == final(legs[1])


def test_damage_to_the_second_leg_leaves_the_first(legs: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(legs[0], run)
    inside(tmp_path, "train", "--resume", run, "--epochs", 0.1)
    for path in run.glob("*.safetensors"):
        if path.name >= checkpoint(run, FIRST).name:
            path.write_bytes(path.read_bytes()[:-1])
    (run / "best.safetensors").unlink()
    done = inside(tmp_path, "train", "--resume", run, "--json")
    assert done.json()["steps"] == FIRST
    assert "is ignored" in done.err


def test_the_best_of_all_legs_is_kept_and_patience_starts_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab" * 300)
    (tmp_path / "valid.txt").write_text("aab" * 100)  # validation loss rises with training
    args = ["train", "text.txt", "--valid", "valid.txt", "--out", "run", "--json", *TINY]
    first = inside(
        tmp_path, *args, "--lr", 0.1, "--eval-every", 2, "--patience", 3, "--steps", 100
    ).json()
    assert first["stopped"] == "patience"
    best = (tmp_path / "run/best.safetensors").read_bytes()
    done = inside(tmp_path, "train", "--resume", "run", "--json")
    assert done.json()["steps"] == first["steps"]
    assert "to train it for longer: gru-lm train --resume run --minutes 5" in done.err
    second = inside(tmp_path, "train", "--resume", "run", "--steps", 50, "--json").json()
    assert second["stopped"] == "patience"
    assert second["steps"] >= first["steps"] + 5
    assert second["valid"]["nats"] == first["valid"]["nats"]
    assert (tmp_path / "run/best.safetensors").read_bytes() == best


def test_an_end_before_the_minutes_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(100), encoding="utf-8")
    args = ["train", "text.txt", "--out", "run", *TINY, "--minutes", 2, "--epochs", 1]
    said = "stopped before 2 minutes, after 1 pass over the text"
    assert said in inside(tmp_path, *args).err


def test_patience_looks_at_the_new_leg_alone() -> None:
    """The learning rate rises again; a validation loss that is worse at first is no reason to stop."""
    nothing: Any = None
    state = TrainState(nothing, nothing, nothing, nothing, step=9, best_step=9, best_nats=1.0)
    state.start_leg()
    assert [state.validated(nats, 0.0) for nats in (3.0, 2.0, 2.5)] == [False] * 3
    assert (state.since_best, state.best_nats) == (1, 1.0)
    assert state.validated(0.5, 0.0)
    assert (state.since_best, state.best_nats) == (0, 0.5)


@pytest.mark.parametrize("option", [["--lr", 1], ["--set", "lr=1"], ["--patience", 2]])
def test_nothing_but_a_budget_goes_with_resume(
    option: list[object], legs: tuple[Path, Path], tmp_path: Path
) -> None:
    before = final(legs[1])
    said = error(tmp_path, "train", "--resume", legs[1], "--minutes", 1, *option, code=2)
    assert "and a budget (--minutes M)" in said
    assert f"hint: gru-lm train --resume {legs[1]}" in said
    assert "--minutes must be at least" in error(
        tmp_path, "train", "--resume", legs[1], "--minutes", 0, code=2
    )
    assert final(legs[1]) == before
