"""Budgets in minutes: large test texts are skipped unread; no time for a step is an error."""

from __future__ import annotations

import gc
import gzip
import time
import tomllib
from pathlib import Path

import pytest

from gru_lm.commands.train.clock import READING, TOKENIZING, Pace, Spent
from gru_lm.commands.train.run import train
from gru_lm.config_layers import settings
from gru_lm.planning.text import TEST_SHARE, TEST_SPEED
from gru_lm.training.checkpoint import Checkpoint
from tests.conftest import TINY, words
from tests.inside import error, inside, listing

SHORT = [*TINY, "--steps", 2, "--minutes", 1]
TOO_MUCH = int(60 * TEST_SHARE * TEST_SPEED) + 1  # bytes, of the one minute


@pytest.mark.parametrize("packed", [False, True])
def test_a_test_text_that_would_eat_the_budget_is_not_read(
    packed: bool, tmp_path: Path, text: Path
) -> None:
    """Reading it would fail: except for the beginning, the file is sparse."""
    test = tmp_path / ("test.txt.gz" if packed else "test.txt")
    content = words(2000).encode()
    test.write_bytes(gzip.compress(content) if packed else content)
    with test.open("r+b") as file:
        file.truncate(TOO_MUCH // 3 + 1 if packed else TOO_MUCH)
    done = inside(tmp_path, "train", text, *SHORT, "--test", test, "--out", "run", "--json")
    assert "test" not in done.json()
    assert f"test text of {TOO_MUCH / 1e6:.0f} MB skipped" in done.err
    assert f"gru-lm eval RUN {test}" in done.err
    assert "test" not in tomllib.loads((tmp_path / "run/config.toml").read_text())
    inside(tmp_path, "train", "--resume", "run", "--steps", 1, "--threads", 1)


def test_nor_is_a_test_part_of_the_text_tokenized(tmp_path: Path) -> None:
    line = words(30, seed=2).replace("\n", " ") + "\n"
    minutes, size = 0.2, 60 * 0.2 * TEST_SHARE * TEST_SPEED
    (tmp_path / "text.txt").write_text(line * int(size / 0.9 / len(line) + 100))
    options = [*TINY, "--split", "0.05,0.05,0.9", "--steps", 2, "--minutes", minutes]
    options += ["--characters", 9999, "--valid-characters", 999]
    result = inside(tmp_path, "train", "text.txt", *options, "--out", "run", "--json")
    assert "test" not in result.json()
    resumed = inside(tmp_path, "train", "--resume", "run", "--steps", 1, "--minutes", minutes)
    for said in (result.err, resumed.err):
        assert f"test text of {size / 1e6:.0f} MB skipped" in said


def test_a_leg_without_a_step_is_an_error_that_changes_nothing(
    trained: Path, tmp_path: Path
) -> None:
    inside(tmp_path, "train", trained.parent / "text.txt", *TINY, "--steps", 3, "--out", "run")
    before = listing(tmp_path / "run")
    said = error(tmp_path, "train", "--resume", "run", "--minutes", 0.01, code=2)
    assert "no training step fits into --minutes 0.01" in said
    assert "hint: gru-lm train --resume run --minutes" in said
    after = listing(tmp_path / "run")
    assert {name for name in before if before[name] != after[name]} <= {
        "config.toml",
        "step-00000003.safetensors",
        "best.safetensors",
    }, "only files of the new leg may change"
    inside(tmp_path, "train", "--resume", "run", "--steps", 1)


@pytest.mark.parametrize(
    ("spent", "reserved", "named", "remedy"),
    [
        (
            {READING: 40.0, TOKENIZING: 5.0},
            1.0,
            "reading the text takes 40.0 of its 30 s",
            "--test",
        ),
        ({TOKENIZING: 31.0}, 1.0, "tokenizing the text takes 31.0", "a smaller --characters"),
        ({READING: 9.0}, 25.0, "a validation takes 25.0", "--valid-characters"),
    ],
)
def test_the_error_names_what_took_the_time(
    spent: dict[str, float], reserved: float, named: str, remedy: str
) -> None:
    now = time.monotonic()
    pace = Pace(started=now, before=0.0, held_out=1, test=0, step_tokens=1)
    pace.validation_seconds = reserved
    error = pace.no_step(Spent(now, spent), 0.5, Path("run"), 0)
    assert error.why is not None
    assert error.hint is not None
    assert named in error.why
    assert error.hint.startswith("--minutes ")
    assert remedy in error.hint


def test_time_is_accounted_for_once() -> None:
    spent = Spent(time.monotonic() - 5)
    spent.on(READING)
    spent.on(TOKENIZING)
    spent.on(READING)
    assert spent.seconds[READING] == pytest.approx(5, abs=0.2)
    assert sum(spent.seconds.values()) == pytest.approx(5, abs=0.2)


def test_the_run_that_training_starts_from_does_not_stay_in_memory(
    trained: Path, tmp_path: Path
) -> None:
    held: list[int] = []

    def stop() -> None:
        if (tmp_path / "run" / "metrics.jsonl").exists():  # written from the first step
            held.append(sum(type(each) is Checkpoint for each in gc.get_objects()))

    chosen = settings(
        {"text": str(trained.parent / "text.txt"), "start_from": str(trained)},
        {"steps": 2, "batch": 2, "bptt": 8, "threads": 1},
    )
    train(chosen, out=tmp_path / "run", stop=stop)
    assert held
    assert max(held) == 0
