"""Budget progress, learning-rate schedules, weight decay, and Muon."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.errors import DivergedError
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.batches import Batches
from gru_lm.training.loop import MIN_SCALE, TrainState, train_steps
from gru_lm.training.optimizers import (
    MAX_MUON_DECAY,
    PERIOD,
    WARMUP_START,
    Budget,
    Schedule,
    make_optimizer,
    orthogonal,
)

KINDS = ("cosine", "linear", "constant")
SHARES = st.floats(0, 1)


def test_budget_ends_with_whichever_limit_comes_first() -> None:
    both = Budget(steps=100, seconds=10.0)
    assert both.progress(10, 5.0) == 0.5
    assert both.progress(90, 5.0) == 0.9
    assert both.progress(100, 0.0) == both.progress(0, 10.0) == 1.0
    assert both.progress(1000, 1000.0) == 1.0
    assert Budget(steps=None, seconds=2.0).progress(10**9, 1.0) == 0.5


def test_time_before_the_first_step_is_not_progress() -> None:
    late = Budget(steps=None, seconds=10.0, began=6.0)
    assert [late.progress(1, seconds) for seconds in (5.0, 6.0, 8.0, 10.0)] == [0, 0, 0.5, 1]
    assert Budget(steps=None, seconds=10.0, began=11.0).progress(0, 11.0) == 1


@given(kind=st.sampled_from(KINDS), warmup=SHARES, progress=SHARES)
def test_learning_rate_stays_between_zero_and_peak(
    kind: str, warmup: float, progress: float
) -> None:
    rate = Schedule(kind=kind, lr=0.5, warmup=warmup)(progress)
    assert 0 <= rate <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rate_warms_up_and_decays(kind: str) -> None:
    rate = Schedule(kind=kind, lr=2.0, warmup=0.1)
    assert rate(0) == 2.0 * WARMUP_START > 0
    assert rate(0.05) == pytest.approx(1.0)
    assert rate(0.1) == pytest.approx(2.0)
    rates = [rate(0.1 + 0.9 * i / 50) for i in range(51)]
    assert rates == sorted(rates, reverse=True)
    assert rate(1) == pytest.approx(2.0 if kind == "constant" else 0.0, abs=1e-12)
    middle = {"cosine": 1.0, "linear": 1.0, "constant": 2.0}
    assert rate(0.55) == pytest.approx(middle[kind])


def test_cosine_decays_later_than_linear() -> None:
    cosine, linear = (Schedule(kind=kind, lr=1.0, warmup=0.0) for kind in ("cosine", "linear"))
    assert cosine(0.2) > linear(0.2)
    assert cosine(0.8) < linear(0.8)


def test_warmup_over_the_whole_budget() -> None:
    assert Schedule(kind="cosine", lr=1.0, warmup=1.0)(0.5) == 0.5


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_applies_to_matrices_only(name: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, name, weight_decay=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.bias, before["bias"])
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))


def test_vanishing_loss_scale_is_divergence() -> None:
    """Under fp16 an overflow halves the loss scale and skips the step, but not indefinitely."""
    config = ModelConfig(cell="gru", vocab_size=5, layers=1, width=4, embed=4)
    model = LanguageModel(config)
    optimizer = make_optimizer(model, "adamw", weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 * MIN_SCALE)
    state = TrainState(model, optimizer, scaler, model.initial_state(2))
    steps = train_steps(
        state,
        Batches(tokens=np.arange(40) % 5, batch=2, bptt=4, seed=0),
        budget=Budget(steps=9, seconds=None),
        schedule=Schedule(kind="constant", lr=0.1, warmup=0),
        clip=0,
        seed=0,
        precision="float32",
        clock=lambda: 0.0,
    )
    assert next(steps).step == 1
    scaler.update(MIN_SCALE / 2)
    with pytest.raises(
        DivergedError, match="step 2: the fp16 gradient overflows at every loss scale"
    ):
        next(steps)


def test_orthogonalization() -> None:
    torch.manual_seed(1)
    x_nHH = torch.randn(4, 32, 32)
    near = orthogonal(x_nHH)
    singular = torch.linalg.svdvals(near)
    assert singular.median() > 0.7
    assert singular.max() < 2
    U, _, V = torch.linalg.svd(x_nHH)
    assert torch.einsum("nij,nij->n", near, U @ V).min() > 0.7 * 32, "close to the polar factor"
    torch.testing.assert_close(orthogonal(1e6 * x_nHH), near)
    assert torch.equal(orthogonal(torch.zeros(1, 3, 3)), torch.zeros(1, 3, 3))


@pytest.mark.parametrize("embed", [4, 16])
@pytest.mark.parametrize("cell", CELLS)
def test_muon_updates_square_gate_blocks_and_adamw_the_rest(cell: str, embed: int) -> None:
    torch.manual_seed(0)
    H, lr = 16, 0.01
    model = LanguageModel(ModelConfig(cell=cell, vocab_size=5, layers=2, width=H, embed=embed))
    other = LanguageModel(model.config)
    other.load_state_dict(model.state_dict())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for each, name in ((model, "muon"), (other, "adamw")):
        optimizer = make_optimizer(each, name, weight_decay=0.0)
        generator = torch.Generator().manual_seed(3)
        for parameter in each.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(PERIOD):  # each matrix is updated once
            optimizer.step()
    square = {"layers.0.weight_hh_l0", "layers.1.weight_hh_l0", "layers.1.weight_ih_l0"}
    square |= {"layers.0.weight_ih_l0"} if embed == H else set()
    compared = dict(other.named_parameters())
    for name, value in model.named_parameters():
        if name.removeprefix("recurrent.") not in square:
            assert torch.equal(value, compared[name]), name
            continue
        change = (before[name] - value).detach()
        for gate, gradient in zip(change.split(H), value.grad.split(H), strict=True):
            turned = gate / (PERIOD * lr * H**0.5 / 4)
            torch.testing.assert_close(turned, orthogonal(gradient[None])[0], rtol=1e-3, atol=1e-4)


def test_weight_decay_of_muon_is_capped() -> None:
    H, lr = 16, 0.01
    config = ModelConfig(cell="gru", vocab_size=5, layers=1, width=H, embed=H)
    for decay, muon_decay in ((0.05, 0.05), (0.3, MAX_MUON_DECAY)):
        model = LanguageModel(config)
        optimizer = make_optimizer(model, "muon", weight_decay=decay)
        cell, rows = model.recurrent.layers[0].weight_hh_l0, model.head.embedding
        before = [weight.detach().clone() for weight in (cell, rows)]
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(PERIOD):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        torch.testing.assert_close(cell, (1 - PERIOD * lr * H**0.5 / 4 * muon_decay) * before[0])
        torch.testing.assert_close(rows, (1 - lr * decay) ** PERIOD * before[1])


def test_muon_updates_matrices_in_rotation() -> None:
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", vocab_size=5, layers=3, width=8, embed=8)
    model = LanguageModel(config)
    optimizer = make_optimizer(model, "muon", weight_decay=0.0)
    matrices = optimizer.param_groups[0]["params"]
    assert len(matrices) == 6
    optimizer.param_groups[0]["lr"] = 0.01
    turns: list[int] = []
    for _ in range(2 * PERIOD):
        before = [matrix.detach().clone() for matrix in matrices]
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        moved = [not torch.equal(m, b) for m, b in zip(matrices, before, strict=True)]
        turns += [number for number, each in enumerate(moved) if each]
    assert sorted(turns) == sorted(2 * [*range(6)]), "each once per PERIOD steps"
    assert turns[:6] == turns[6:]
