"""Combinations of options, and texts at the limits of what can be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gru_lm.text.tokenizer import train_tokenizer
from gru_lm.training.optimizers import make_optimizer
from tests.conftest import TINY, words
from tests.inside import error, inside

SHORT = [*TINY, "--steps", 3]


def test_from_takes_the_shape_and_not_the_regularization(
    trained: Path, tmp_path: Path, text: Path
) -> None:
    args = ["train", text, "--from", trained, "--steps", 2, "--batch", 2, "--bptt", 8]
    inside(tmp_path, *args, "--out", "run", "--dropout", 0.5)
    before, after = (
        inside(run, "info", run, "--json").json() for run in (trained, tmp_path / "run")
    )
    assert after["model"] == before["model"]
    assert before["regularization"]["dropout"] != after["regularization"]["dropout"] == 0.5
    said = error(tmp_path, *args, "--cell", "lstm", code=2)
    assert "--cell lstm cannot be combined with --from: the run has gru" in said
    assert "--tokenizer" in error(tmp_path, *args, "--tokenizer", "byte", code=2)


@pytest.mark.slow
def test_from_names_the_default_run_by_its_cell(tmp_path: Path, text: Path) -> None:
    inside(tmp_path, "train", text, *SHORT, "--cell", "rnn", "--out", "first")
    inside(tmp_path, "train", text, "--from", "first", "--steps", 1, "--batch", 2, "--bptt", 8)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["rnn-1"]


def test_a_word_model_of_ones_own_cuts_at_line_ends_and_resumes(tmp_path: Path, text: Path) -> None:
    content = words(400)
    (tmp_path / "own.model").write_bytes(train_tokenizer("word", lambda: [content]).data)
    own = [part if part != "char" else "own.model" for part in SHORT]
    inside(tmp_path, "train", text, *own, "--out", "run")
    assert "resuming run" in inside(tmp_path, "train", "--resume", "run").err
    inside(tmp_path, "eval", "run")
    said = error(tmp_path, "train", text, *own, "--vocab-size", 9, code=2)
    assert "--vocab-size cannot be combined with own.model" in said
    plan = inside(tmp_path, "train", text, *own, "--dry-run").out
    assert 'tokenizer = "own.model"' in plan
    (tmp_path / "plan.toml").write_text(plan, encoding="utf-8")
    inside(tmp_path, "train", "--config", "plan.toml", "--out", "planned")
    assert (tmp_path / "planned/best.safetensors").read_bytes() == (
        tmp_path / "run/best.safetensors"
    ).read_bytes()
    gone = [part if part != "own.model" else "gone.model" for part in own]
    assert "gone.model" in error(tmp_path, "train", text, *gone, code=3)


def test_resume_takes_no_other_option(trained: Path, tmp_path: Path) -> None:
    for other in (["--dry-run"], ["--print-config"], ["--weight-decay", 0], ["--from", trained]):
        said = error(tmp_path, "train", "--resume", trained, *other, code=2)
        assert (
            f"--resume keeps the run's own settings and cannot be combined with {other[0]}" in said
        )


def test_the_plan_of_a_run_that_starts_from_another_can_be_used(
    trained: Path, tmp_path: Path, text: Path
) -> None:
    options = ["train", text, "--from", trained, "--steps", 1, "--batch", 2, "--bptt", 8]
    plan = inside(tmp_path, *options, "--dry-run").out
    (tmp_path / "plan.toml").write_text(plan, encoding="utf-8")
    inside(tmp_path, "train", "--from", trained, "--config", "plan.toml", "--out", "run")


def test_three_shares_and_a_held_out_file_contradict_each_other(tmp_path: Path, text: Path) -> None:
    args = ["train", text, *SHORT, "--valid", text, "--split", "0.8,0.1,0.1"]
    assert "does not go with --valid or --test" in error(tmp_path, *args, code=2)


def test_a_held_out_text_without_a_token(tmp_path: Path, text: Path) -> None:
    (tmp_path / "blank.txt").write_text("   ")
    word = [part if part != "char" else "word" for part in SHORT]
    said = error(tmp_path, "train", text, *word, "--valid", "blank.txt", code=3)
    assert "the held-out text is empty" in said
    assert not (tmp_path / "runs").exists()


def test_a_budget_without_a_step_is_an_error(tmp_path: Path, text: Path) -> None:
    """That names what took the time; nothing is left, so that the next try plans anew."""
    said = error(tmp_path, "train", text, *TINY, "--minutes", 0.01, "--out", "run", code=2)
    assert "no training step fits into --minutes 0.01" in said
    assert " of its 1 s" in said
    assert "hint: --minutes 0." in said
    assert not (tmp_path / "run").exists()


def test_unknown_words_are_said_to_flatter(tmp_path: Path) -> None:
    numbers = "".join(f"the {number} {number * 7919 % 100003}\n" for number in range(400))
    (tmp_path / "text.txt").write_text(numbers)
    word = [part if part != "char" else "word" for part in SHORT]
    assert "are unknown words" in inside(tmp_path, "train", "text.txt", *word, "--out", "run").err


def test_a_glob_is_recorded_so_that_any_folder_resumes_it(tmp_path: Path, text: Path) -> None:
    odd = tmp_path / "g[1]"
    odd.mkdir()
    text.rename(odd / "a.txt")
    inside(odd, "train", "*.txt", *SHORT, "--out", "run")
    inside(tmp_path, "train", "--resume", odd / "run")


def test_sgd_starts_its_momentum_from_a_skipped_step() -> None:
    """In fp16 the first gradients often overflow; the gradient scaler then skips the step."""
    layer = torch.nn.Linear(4, 4)
    optimizer = make_optimizer(layer, "sgd", weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = layer.weight.detach().clone()
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 4)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(layer.weight, before - 0.1)


def test_the_test_text_is_measured_with_the_best_model(tmp_path: Path, text: Path) -> None:
    (tmp_path / "test.txt").write_text(words(4000, seed=1))
    args = ["train", text, *SHORT, "--test", "test.txt", "--out", "run", "--json"]
    result = inside(tmp_path, *args).json()
    assert result["test"]["tokens"] == len(words(4000, seed=1))
    assert result["test"]["checkpoint"] == result["checkpoint"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_room_for_the_optimizer_is_asked_for_before_the_first_step(
    optimizer: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "gru_lm.training.directory.Run.check_space", lambda _, size: asked.append(size)
    )
    inside(tmp_path, "train", text, *SHORT, "--optimizer", optimizer, "--out", "run")
    written = (tmp_path / "run" / "step-00000003.safetensors").stat().st_size
    assert asked[0] == pytest.approx(written, rel=0.2)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
