"""Run directories: creation, the files found on resuming, and the best checkpoint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gru_lm.errors import UsageError
from gru_lm.training.checkpoint import read
from gru_lm.training.directory import Run
from gru_lm.training.loop import TrainState
from tests.conftest import TINY, words
from tests.faults.hostile import changed
from tests.inside import error, inside, listing

OPTIONS = [*TINY, "--steps", 20, "--eval-every", 10, "--save-every", 5]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, in which best.safetensors is a separate file."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def state(**values: Any) -> TrainState:
    fields = {"step": 0, "validated_step": -1, "best_step": -1, "best_nats": math.inf}
    return cast(TrainState, SimpleNamespace(**(fields | values)))


def damage(path: Path) -> None:
    """Damage a file in place, under all its hard links."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


@pytest.mark.parametrize("out", [[], ["--out", "."]])
def test_a_folder_that_holds_its_own_run(out: list[str], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(words(300), encoding="utf-8")
    inside(tmp_path, "train", ".", *OPTIONS, *out)
    run = Path(out[1] if out else "runs/gru-1")
    (tmp_path / run / "step-00000020.safetensors").unlink()
    assert "after step 15" in inside(tmp_path, "train", "--resume", run).err
    inside(tmp_path, "eval", run)
    again = inside(tmp_path, "train", ".", *OPTIONS, "--out", "runs/again", "--json").json()
    assert again["valid"]["characters"] == len(words(300)) - int(0.9 * len(words(300)))
    last = "step-00000020.safetensors"
    assert (
        read(tmp_path / "runs/again" / last).meta["data"]
        == read(tmp_path / run / last).meta["data"]
    )


@pytest.mark.parametrize("dangling", [False, True])
def test_runs_is_a_file(dangling: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere") if dangling else Path("runs").touch()
    with pytest.raises(UsageError, match="runs is not a directory"):
        Run.create(None, "gru")


def test_samples_that_look_like_headers(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", "gru")
    samples = tmp_path / "run" / "samples.txt"
    run.append_sample(1, "a\r\n--- step foo\n\n--- step 0 \u2028\r--- step 9\n\n")
    run.append_sample(2, "--- step 1\nb \n--- step " + "9" * 5000)
    before = samples.read_bytes()
    run.append_sample(13, "c")
    rest = samples.read_bytes()[len(before) :]
    for cut in range(len(rest) + 1):  # a crash may leave any part of the last sample
        samples.write_bytes(before + rest[:cut])
        run.rewind(state(step=12, validated_step=2), pytest.fail)
        assert samples.read_bytes() == before
    run.close()


def test_the_best_is_mended_from_its_step(run: Path) -> None:
    best, last = run / "best.safetensors", run / "step-00000030.safetensors"
    step = read(best).meta["best_step"]
    assert step == read(last).meta["step"], "the last is the best"
    for mishap in (damage, Path.unlink):
        mishap(best)
        opened = Run.reopen(run)
        opened.rewind(state(step=30, validated_step=30, best_step=step), pytest.fail)
        opened.close()
        assert best.read_bytes() == last.read_bytes()


def test_a_best_of_later_is_removed_where_there_was_none(run: Path) -> None:
    opened = Run.reopen(run)
    opened.rewind(state(), pytest.fail)
    opened.close()
    assert not (run / "best.safetensors").exists()


def lost(folder: Path, *, steps: list[str]) -> Path:
    """A run whose newest checkpoint, hard-linked as best, is damaged; only `steps` remain besides."""
    (folder / "text.txt").write_text(words(300), encoding="utf-8")
    inside(folder, "train", "text.txt", "--out", "run", *OPTIONS, "--keep", 9)
    run = folder / "run"
    best, last = run / "best.safetensors", run / "step-00000020.safetensors"
    assert best.samefile(last)
    damage(last)
    for path in run.glob("step-*"):
        if path.name[5:13] not in steps and path != last:
            path.unlink()
    return run


@pytest.mark.parametrize(
    ("steps", "said"), [(["00000015", "00000010"], False), (["00000015"], True)]
)
def test_a_damaged_newest_that_is_the_best(steps: list[str], said: bool, tmp_path: Path) -> None:
    run = lost(tmp_path, steps=steps)
    done = inside(tmp_path, "train", "--resume", "run", "--json")
    assert "resuming run after step 15" in done.err
    assert ("(step 10) is missing or damaged" in done.err) is said
    assert done.json()["valid"]
    assert read(run / "best.safetensors").meta["best_step"] == 20
    inside(tmp_path, "eval", "run")


def test_a_best_that_is_a_file_of_its_own_is_gone_on_with(run: Path) -> None:
    """If all other checkpoints were removed, for example to save space."""
    for path in run.glob("step-*"):
        path.unlink()
    done = inside(run.parent, "train", "--resume", "run", "--steps", 5, "--json")
    assert done.json()["steps"] == 35
    said = error(run.parent, "train", "--resume", "run/best.safetensors", code=3)
    assert "is a file: name its directory" in said


def test_a_best_lost_after_the_end_is_made_again(run: Path) -> None:
    """If no steps are left, the last validation is repeated to restore the best."""
    last, best = run / "step-00000030.safetensors", run / "best.safetensors"

    def earlier(header: dict[str, Any], meta: dict[str, Any]) -> None:
        del header
        meta["best_step"] = 20

    last.write_bytes(changed(last.read_bytes(), earlier))
    damage(best)
    samples = (run / "samples.txt").read_bytes()
    lines = (run / "metrics.jsonl").read_text().count("valid_bits")
    done = inside(run.parent, "train", "--resume", "run", "--json")
    assert "best.safetensors (step 20) is missing or damaged" in done.err
    assert done.json()["valid"]
    assert read(best).meta["best_step"] == read(best).meta["validated_step"] == 30
    assert (run / "samples.txt").read_bytes() == samples, "repeated, not doubled"
    assert (run / "metrics.jsonl").read_text().count("valid_bits") == lines


@pytest.mark.parametrize(
    ("lock", "name"),
    [(False, "text.txt"), (True, "text.txt"), (True, "config.toml"), (False, "metrics.jsonl")],
)
def test_what_is_not_of_such_a_run_is_not_overwritten(
    lock: bool, name: str, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(words(300), encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("my own")
    if lock:
        (run / ".lock").touch()
    before = listing(run)
    for _ in range(2):  # nor by a second attempt
        message = error(tmp_path, "train", "text.txt", "--out", "run", *OPTIONS, code=2)
        assert f"contains a file {name}" in message
        assert listing(run) == before
