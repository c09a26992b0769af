"""Weight averaging: literal means, NT-ASGD's trigger, use in validation, resuming, tampering."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.errors import InputError
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.batches import Batches
from gru_lm.training.checkpoint import read
from gru_lm.training.loop import TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule, make_optimizer, stopped_improving
from gru_lm.training.state import restore, restore_model
from tests.conftest import TINY, words
from tests.faults.hostile import changed
from tests.inside import error, inside

CPU = torch.device("cpu")


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.model.named_parameters()}


def trained(steps: int, *, start: int, decay: float | None) -> tuple[TrainState, list[dict]]:
    """Train and average from step `start` on; return the state and the weights of each averaged step."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(cell="gru", vocab_size=5, layers=1, width=4, embed=4))
    optimizer = make_optimizer(model, "nt-asgd", weight_decay=0.0)
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu"), model.initial_state(2))
    made = train_steps(
        state,
        Batches(tokens=np.arange(60) % 5, batch=2, bptt=4, seed=0),
        budget=Budget(steps=steps, seconds=None),
        schedule=Schedule(kind="constant", lr=1.0, warmup=0),
        clip=0,
        seed=0,
        precision="float32",
        clock=lambda: 0.0,
        average_decay=decay,
    )
    for _ in range(start):
        next(made)
    state.start_average()
    seen = [weights(state)]
    for _ in made:
        seen.append(weights(state))
    return state, seen


def test_plain_average_is_the_mean_of_weights_since_its_start() -> None:
    state, seen = trained(9, start=3, decay=None)
    assert len(seen) == 7
    assert state.average is not None
    for name, value in state.average.items():
        torch.testing.assert_close(value, torch.stack([each[name] for each in seen]).mean(0))


def test_exponential_average_matches_its_recursion() -> None:
    state, seen = trained(40, start=0, decay=0.7)
    assert state.average is not None
    for name, value in state.average.items():
        wanted = seen[0][name].double()
        for t, each in enumerate(seen[1:], 1):
            decay = min(0.7, (1 + t) / (10 + t))
            wanted = decay * wanted + (1 - decay) * each[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_swapped_in_and_out() -> None:
    state, seen = trained(5, start=0, decay=None)
    with suppress(ZeroDivisionError), state.averaged():
        assert state.average is not None
        for name, value in state.model.named_parameters():
            assert torch.equal(value, state.average[name])
            assert not torch.equal(value, seen[-1][name])
        raise ZeroDivisionError
    assert all(torch.equal(value, seen[-1][name]) for name, value in weights(state).items())


@given(st.lists(st.floats(0, 10), max_size=30))
def test_nt_asgd_trigger_ignores_the_last_five_validations(
    losses: list[float],
) -> None:
    triggered = [stopped_improving(nats, losses[:i]) for i, nats in enumerate(losses)]
    assert triggered == [
        any(i - j > 5 and losses[j] < nats for j in range(i)) for i, nats in enumerate(losses)
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--average", 0.8],
        # At this learning rate, validation soon stops improving and triggers averaging.
        ["--optimizer", "nt-asgd", "--schedule", "constant", "--lr", 20, "--clip", 0.25],
        ["--average", 0.9, "--optimizer", "muon", "--layers", 2],
    ],
)
def test_average_is_saved_resumed_and_used(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gru_lm.commands.train.run.loss_png", lambda *_: b"")
    (tmp_path / "text.txt").write_text(words(100), encoding="utf-8")
    regular = ["--dropout", 0.2, "--weight-drop", 0.3, "--locked", "--input-dropout", 0.2]
    regular += ["--embedding-dropout", 0.1, "--ar", 2, "--tar", 1]
    every = ["--steps", 14, "--eval-every", 1, "--save-every", 1, "--keep", 99]
    inside(tmp_path, "train", "text.txt", "--out", "run", *TINY, *regular, *every, *options)
    run = tmp_path / "run"
    last = run / "step-00000014.safetensors"
    checkpoint, whole = read(last), last.read_bytes()
    state = restore(checkpoint, device=CPU, backend="fused")
    assert 0 <= state.average_start < 13, "averaging has started"
    raw = weights(state)
    used = restore_model(checkpoint, checkpoint.tensors(), device=CPU, backend="fused")
    assert state.average is not None
    for name, value in used.named_parameters():
        assert torch.equal(value, state.average[name])
        assert not torch.equal(value, raw[name])
    for step in sorted({2, state.average_start, 13}):
        for path in run.glob("step-*.safetensors"):
            if int(path.stem[5:]) > step:
                path.unlink()
        inside(tmp_path, "train", "--resume", "run")
        assert last.read_bytes() == whole, f"resumed after step {step}"


@pytest.fixture(scope="module")
def averaging(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last checkpoint of a run with an average."""
    folder = tmp_path_factory.mktemp("averaging")
    (folder / "text.txt").write_text(words(100), encoding="utf-8")
    inside(folder, "train", "text.txt", "--out", "run", *TINY, "--steps", 2, "--average", 0.9)
    return (folder / "run/step-00000002.safetensors").read_bytes()


WEIGHT = "average.recurrent.layers.0.weight_hh_l0"
HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "a weight without its average": lambda header, meta: header.pop(WEIGHT),
    "an average of nothing": lambda header, meta: header.update({"average.x": header.pop(WEIGHT)}),
    "another shape": lambda header, meta: header[WEIGHT].update(shape=[8, 24]),
    "whole numbers": lambda header, meta: header[WEIGHT].update(dtype="I32"),
    "no start": lambda header, meta: meta.update(average_start=-1),
    "start after the step": lambda header, meta: meta.update(average_start=3),
    "a start without an average": lambda header, meta: [
        header.pop(name) for name in list(header) if name.startswith("average.")
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tampered_averages_are_rejected(name: str, averaging: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(changed(averaging, HOSTILE[name]))
    with pytest.raises(InputError) as caught:
        restore(read(path), device=CPU, backend="fused")
    assert "checksum" not in str(caught.value.why), "the test wrote a wrong checksum"


def test_two_kinds_of_average_are_rejected(tmp_path: Path) -> None:
    options = ["--average", 0.9, "--optimizer", "nt-asgd"]
    assert "already averages the weights" in error(
        tmp_path, "train", "nothing.txt", *options, code=2
    )
