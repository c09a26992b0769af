"""Golden losses of short training runs (float64, one thread, to 1e-9); refactoring must not move them.

A commit that changes them on purpose explains why, and regenerates them with
`python -m tests.golden.test_golden`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.regularize import Regularization
from gru_lm.text.batches import Batches
from gru_lm.training.loop import TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule, make_optimizer

GOLDEN = Path(__file__).with_name("losses.json")
STEPS = 12


ADAPTIVE = {"tied": True, "cutoffs": (3, 8)}


def losses(cell: str, backend: str, optimizer: str = "adamw", **changes: Any) -> list[float]:
    """The losses of a short training run on synthetic tokens, with two layers and dropout."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 17, "layers": 2, "width": 12, "embed": 7}
    config = ModelConfig(cell=cell, **size, **changes)
    regularization = Regularization(dropout=0.2)
    model = LanguageModel(config, regularization=regularization, backend=backend).double()
    tokens = (np.arange(500) ** 2 // 7 % 17).astype(np.uint8)
    model.set_unigram(torch.from_numpy(np.bincount(tokens, minlength=17)))
    state = TrainState(
        model,
        make_optimizer(model, optimizer, weight_decay=0.1),
        torch.amp.GradScaler("cpu", enabled=False),
        model.initial_state(4),
    )
    steps = train_steps(
        state,
        Batches(tokens=tokens, batch=4, bptt=10, seed=0),
        budget=Budget(steps=STEPS, seconds=None),
        schedule=Schedule(kind="cosine", lr=0.02, warmup=0.1),
        clip=1.0,
        seed=0,
        precision="float32",  # no autocast: the model is float64
        clock=lambda: 0.0,
    )
    return [report.loss for report in steps]


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("cell", CELLS)
def test_golden_losses(cell: str, backend: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert losses(cell, backend) == pytest.approx(golden[cell], rel=0, abs=1e-9)


def test_golden_losses_of_an_adaptive_softmax() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert losses("gru", "fused", **ADAPTIVE) == pytest.approx(golden["adaptive"], rel=0, abs=1e-9)


def test_golden_losses_under_muon() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert losses("gru", "fused", "muon") == pytest.approx(golden["muon"], rel=0, abs=1e-9)


if __name__ == "__main__":
    golden = {cell: losses(cell, "reference") for cell in CELLS}
    golden["muon"] = losses("gru", "reference", "muon")
    golden["adaptive"] = losses("gru", "reference", **ADAPTIVE)
    GOLDEN.write_text(json.dumps(golden, indent=1))
