"""Divergence: exit code 4, no NaN or infinity in any file, and a valid last checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gru_lm.errors import DivergedError
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.batches import Batches
from gru_lm.text.tokenizer import load_tokenizer
from gru_lm.training.checkpoint import read
from gru_lm.training.loop import TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule, make_optimizer
from gru_lm.training.state import capture
from tests.conftest import TINY
from tests.faults.hostile import poked
from tests.inside import error, inside


def assert_finite(run: Path) -> None:
    """Assert that no checkpoint and no line of metrics contains NaN or infinity."""
    paths = list(run.glob("*.safetensors"))
    assert paths
    for path in paths:
        for name, value in read(path).tensors().items():
            assert bool(torch.isfinite(value.float()).all()), f"{path}: {name}"
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line, parse_constant=pytest.fail)
        assert all(math.isfinite(value) for value in values.values() if value is not None)


def test_a_rate_that_blows_up(text: Path, tmp_path: Path) -> None:
    options = ["train", text, "--out", "run", "--steps", 30, "--lr", 1e20, "--weight-decay", 0.1]
    options += TINY
    message = error(tmp_path, *options, code=4)
    assert "the last checkpoint is of step" in message
    assert message.endswith("hint: a new run with --lr 0.01")
    run = tmp_path / "run"
    assert_finite(run)
    inside(tmp_path, "eval", "run", text)
    assert "step" in error(tmp_path, "train", "--resume", "run", code=4), "it resumes"
    assert_finite(run)


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", 1, "--lr", 1e39],  # diverges in the last step
        ["--steps", 2, "--lr", 1e38, "--optimizer", "sgd", "--clip", 0],
        ["--steps", 40, "--lr", 1e6, "--optimizer", "sgd", "--clip", 0, "--save-every", 1],
        ["--steps", 40, "--lr", 1e20, "--cell", "lstm", "--save-every", 1, "--eval-every", 1],
        ["--steps", 40, "--lr", 1e30, "--cell", "rnn", "--save-every", 1, "--eval-every", 40],
    ],
)
def test_whatever_happens_no_checkpoint_holds_nan(
    options: list[object], text: Path, tmp_path: Path
) -> None:
    from gru_lm import cli

    code = cli.run(
        [str(each) for each in ("train", text, "--out", tmp_path / "run", *TINY, *options)],
        started=0.0,
    )
    assert code in (0, 4)
    assert_finite(tmp_path / "run")


def state_of(model: LanguageModel) -> TrainState:
    return TrainState(
        model,
        make_optimizer(model, "adamw", weight_decay=0.0),
        torch.amp.GradScaler("cpu", enabled=False),
        model.initial_state(2),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["head.embedding", "head.bias"])
def test_an_injected_number_stops_before_the_optimizers_step(value: float, name: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", vocab_size=257, layers=1, width=4, embed=4)
    model = LanguageModel(config)
    state = state_of(model)
    steps = train_steps(
        state,
        Batches(tokens=np.arange(100) % 9, batch=2, bptt=5, seed=0),
        budget=Budget(steps=10, seconds=None),
        schedule=Schedule(kind="constant", lr=0.01, warmup=0.0),
        clip=1.0,
        seed=0,
        precision="float32",
        clock=lambda: 0.0,
    )
    next(steps)
    with torch.no_grad():
        model.get_parameter(name)[3] = value
    before = {key: parameter.clone() for key, parameter in model.state_dict().items()}
    with pytest.raises(DivergedError, match="step 2: loss"):
        next(steps)
    assert state.step == 1
    for key, parameter in model.state_dict().items():
        torch.testing.assert_close(parameter, before[key], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(DivergedError, match="step 1: the training state contains non-finite"):
        capture(
            state,
            load_tokenizer("byte", b""),
            config={},
            data={},
            held={},
            lines={},
            environment={},
        )


def test_a_checkpoint_with_nan_is_no_start(trained: Path, text: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    content = (trained / "best.safetensors").read_bytes()
    bad.write_bytes(poked(content, "model.head.bias", b"\x00\x00\xc0\x7f"))
    message = error(tmp_path, "train", text, "--from", bad, "--steps", 3, "--out", "run", code=3)
    assert "not finite" in message
    assert not (tmp_path / "run").exists()
