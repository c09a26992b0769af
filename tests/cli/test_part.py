"""Training on a part of a large text, as limited by the budget or by an option."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from gru_lm.planning.text import MARGIN
from gru_lm.training.checkpoint import read
from tests.conftest import TINY, words
from tests.inside import error, inside

STEPS = 12
PART = ["--characters", 40_000, "--valid-characters", 5_000, "--steps", STEPS, *TINY]


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A text of about 90,000 characters, whose parts consist of several slices."""
    path = tmp_path / "long.txt"
    path.write_text(words(20_000), encoding="utf-8")
    return path


def numbers(said: str) -> list[int]:
    """The numbers in the line about the text: used, total, held out, total."""
    (line,) = (line for line in said.splitlines() if line.startswith("text: "))
    return [
        int(each.replace(",", "")) for each in re.findall(r"[\d,]*\d", line.rpartition(".txt: ")[2])
    ]


def test_it_says_so_and_a_resumed_run_reads_the_same(long: Path, tmp_path: Path) -> None:
    n = len(long.read_text(encoding="utf-8"))
    done = inside(
        tmp_path, "train", long, "--out", "run", *PART, "--save-every", 1, "--keep", 99, "--json"
    )
    trained, of, held_out, of_held_out = numbers(done.err)
    assert (of, of_held_out) == (n * 9 // 10, n - n * 9 // 10)
    assert 38_000 < trained <= 40_000
    assert 4_000 < held_out <= 5_000
    assert "can use" not in done.err
    assert done.json()["valid"]["characters"] == held_out
    settings = tomllib.loads((tmp_path / "run/config.toml").read_text(encoding="utf-8"))
    assert (settings["characters"], settings["valid_characters"]) == (40_000, 5_000)

    again = tmp_path / "again"
    again.mkdir()
    for name in ("config.toml", "metrics.jsonl", "step-00000005.safetensors"):
        shutil.copy(tmp_path / "run" / name, again)
    inside(tmp_path, "train", "--resume", again)
    for name in (f"step-{STEPS:08d}.safetensors", "best.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "run" / name).read_bytes()

    # The part is stored in the checkpoint; resuming with another one is an error.
    config = again / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("40000", "40001"))
    assert "was changed: characters" in error(tmp_path, "train", "--resume", again, code=2)

    whole = inside(tmp_path, "eval", "run", "--json").json()
    assert whole["characters"] == of_held_out, "eval uses the whole held-out split"


def test_a_budget_uses_what_it_can(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gru_lm.planning.text.LEAST_USED", 15_000)
    done = inside(tmp_path, "train", long, "--tokens", 16_000, "--dry-run", *TINY)
    assert "(as much as 16,000 tokens can use)" in done.err
    planned = tomllib.loads(done.out)
    assert planned["characters"] == MARGIN * 16_000
    assert "valid_characters" not in planned
    assert numbers(done.err)[0] <= MARGIN * 16_000
    monkeypatch.setattr("gru_lm.planning.text.LEAST_VALIDATED", 2_000)
    done = inside(tmp_path, "train", long, "--tokens", 16_000, "--dry-run", *TINY)
    assert tomllib.loads(done.out)["valid_characters"] == 2_000
    done = inside(tmp_path, "train", long, "--epochs", 1, "--dry-run", *TINY)
    assert len(numbers(done.err)) == 2, "both splits are used whole"
    assert "characters" not in tomllib.loads(done.out)


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
def test_a_part_that_is_too_small_is_an_error_or_trains(
    kind: str, long: Path, tmp_path: Path
) -> None:
    asked = ["train", long, "--tokenizer", kind, "--steps", 1, "--valid-characters", 3]
    said = error(tmp_path, *asked, "--characters", 1, "--batch", 8, "--bptt", 8, code=3)
    assert "too short" in said
    inside(tmp_path, *asked, "--characters", 300, "--width", 8)


def test_all_parts_come_from_the_text_of_their_own(long: Path, tmp_path: Path) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text(words(5_000, seed=1), encoding="utf-8")
    done = inside(tmp_path, "train", long, "--valid", valid, *PART, "--test", valid, "--json")
    result, n = done.json(), len(valid.read_text(encoding="utf-8"))
    assert numbers(done.err)[1::2] == [len(long.read_text(encoding="utf-8")), n]
    assert result["valid"]["characters"] <= 5_000
    assert result["test"]["characters"] == n, "the test split is used whole"


@pytest.mark.slow
def test_a_test_text_that_would_take_much_of_the_minutes_is_left_out(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--split", "0.8,0.1,0.1", "--minutes", 0.05, *TINY, "--json"]
    assert inside(tmp_path, "train", long, *options, "--out", "a").json()["test"]["tokens"]
    monkeypatch.setattr("gru_lm.commands.train.fit.TEST_SHARE", 0.0)
    done = inside(tmp_path, "train", long, *options, "--out", "b")
    assert "test" not in done.json()
    assert "test text skipped: measuring it would take" in done.err


def test_a_text_without_end_of_line(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("x" * 100_000, encoding="utf-8")
    inside(tmp_path, "train", path, "--out", "run", *PART)
    (checkpoint,) = tmp_path.glob("run/best.safetensors")
    assert read(checkpoint).meta["config"]["characters"] == 40_000
