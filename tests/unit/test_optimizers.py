"""The budget's progress, the learning rate over it, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.training.optimizers import FLOOR, Budget, Schedule, make_optimizer

KINDS = ("cosine", "linear", "constant")
SHARES = st.floats(0, 1)


def test_whichever_ends_first() -> None:
    both = Budget(steps=100, seconds=10.0)
    assert both.progress(10, 5.0) == 0.5
    assert both.progress(90, 5.0) == 0.9
    assert both.progress(100, 0.0) == both.progress(0, 10.0) == 1.0
    assert both.progress(1000, 1000.0) == 1.0
    assert Budget(steps=None, seconds=2.0).progress(10**9, 1.0) == 0.5


@given(kind=st.sampled_from(KINDS), warmup=SHARES, progress=SHARES)
def test_the_rate_stays_between_nothing_and_the_highest(
    kind: str, warmup: float, progress: float
) -> None:
    rate = Schedule(kind=kind, lr=0.5, warmup=warmup)(progress)
    assert 0 <= rate <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_it_rises_to_the_highest_and_falls_to_nothing(kind: str) -> None:
    rate = Schedule(kind=kind, lr=2.0, warmup=0.1)
    assert rate(0) == 2.0 * FLOOR > 0
    assert rate(0.05) == pytest.approx(1.0)
    assert rate(0.1) == pytest.approx(2.0)
    rates = [rate(0.1 + 0.9 * i / 50) for i in range(51)]
    assert rates == sorted(rates, reverse=True)
    assert rate(1) == pytest.approx(2.0 if kind == "constant" else 0.0, abs=1e-12)
    middle = {"cosine": 1.0, "linear": 1.0, "constant": 2.0}
    assert rate(0.55) == pytest.approx(middle[kind])


def test_a_cosine_stays_high_longer_than_a_line_first() -> None:
    cosine, linear = (Schedule(kind=kind, lr=1.0, warmup=0.0) for kind in ("cosine", "linear"))
    assert cosine(0.2) > linear(0.2)
    assert cosine(0.8) < linear(0.8)


def test_warmup_over_all_of_the_budget() -> None:
    assert Schedule(kind="cosine", lr=1.0, warmup=1.0)(0.5) == 0.5


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_matrices_decay_and_biases_do_not(name: str) -> None:
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
