"""Dropout and DropConnect: masks, their rates and duration; penalties; no effect without noise."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gru_lm.errors import UsageError
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import SMALL, LanguageModel, ModelConfig
from gru_lm.model.native import build
from gru_lm.model.recurrent import Recurrent
from gru_lm.model.regularize import (
    Regularization,
    activation_penalty,
    dropout,
    recurrent_weights_dropped,
)

ALL = Regularization(
    dropout=0.2, output_dropout=0.3, input_dropout=0.4, embedding_dropout=0.1,
    weight_drop=0.5, locked=True, ar=2.0, tar=1.0,
)  # fmt: skip
BACKENDS = ["fused", "reference", *(["native"] if build.available() else [])]


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    probability=st.floats(0, 0.95),
    seed=st.integers(0, 2**32),
)
def test_locked_mask_is_shared_by_all_steps(
    shape: list[int], probability: float, seed: int
) -> None:
    kept = dropout(torch.ones(shape), probability, noise(seed), locked=True)
    assert torch.equal(kept, kept[:1].expand(shape))


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.65])
def test_dropout_preserves_expectations(locked: bool, probability: float) -> None:
    shape = (2, 100, 500) if locked else (100, 500)
    kept = dropout(torch.ones(shape), probability, noise(), locked=locked)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-4)
    assert (kept == 0).float().mean() == pytest.approx(probability, abs=0.01)
    assert kept.mean() == pytest.approx(1, abs=0.03)


def test_masks_depend_on_their_generator_only() -> None:
    x = torch.ones(50, 50)
    first = dropout(x, 0.4, noise(3))
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(first, dropout(x, 0.4, noise(3)))
    assert dropout(x, 0.4, None) is x
    assert dropout(x, 0.0, noise()) is x


@pytest.mark.parametrize("cell", CELLS)
def test_dropconnect_masks_weights_and_gradients_within_the_block(cell: str) -> None:
    layer = CELLS[cell](3, 40)
    whole, order = layer.weight_hh_l0, [name for name, _ in layer.named_parameters()]
    with recurrent_weights_dropped(layer, 0.3, noise()):
        dropped = layer.weight_hh_l0
        dropped.sum().backward()
    assert layer.weight_hh_l0 is whole
    assert [name for name, _ in layer.named_parameters()] == order
    gone = dropped == 0
    assert gone.float().mean() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(dropped[~gone], whole[~gone] / 0.7, rtol=1e-4, atol=0)
    assert whole.grad is not None
    assert torch.all(whole.grad[gone] == 0)
    assert torch.all(whole.grad[~gone] > 1)
    for probability, drawn in ((0.3, None), (0.0, noise())):
        with recurrent_weights_dropped(layer, probability, drawn):
            assert layer.weight_hh_l0 is whole


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_backend_applies_dropconnect(cell: str, backend: str) -> None:
    """The result equals that of a stack whose own weights are masked, in both layers."""
    torch.manual_seed(0)
    kind = Regularization(weight_drop=0.5)
    stack = Recurrent(cell, inputs=5, width=12, layers=2, backend=backend, regularization=kind)
    own = Recurrent(cell, inputs=5, width=12, layers=2, backend="reference")
    own.load_state_dict(stack.state_dict())
    drawn = noise(4)
    masks = []
    for layer in own.layers:
        masks.append(dropout(torch.ones_like(layer.weight_hh_l0), 0.5, drawn))
        layer.weight_hh_l0.data *= masks[-1]
    rows_TB, table = torch.randint(7, (6, 3)), torch.randn(7, 5)
    state = torch.randn(2, stack.states, 3, 12)
    found = []
    for each, drawn_from in ((stack, noise(4)), (own, None)):
        out, after = each(table, state, drawn_from, rows_TB)
        (out.square().sum() + after.sum()).backward()
        grads = [layer.weight_hh_l0.grad for layer in each.layers]
        found.append((out.detach(), after.detach(), grads))
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other, mask in zip(found[0][2], found[1][2], masks, strict=True):
        torch.testing.assert_close(one, other * mask, rtol=1e-4, atol=1e-4)


def model(vocab_size: int = 11, **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(cell="lstm", vocab_size=vocab_size, layers=2, width=8, embed=6)
    made = LanguageModel(config, regularization=Regularization(**changes))
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def batch(vocab_size: int = 11) -> Tensor:
    return torch.randint(vocab_size, (3, 12), generator=noise(1))


def test_without_noise_nothing_is_dropped() -> None:
    plain, all_of_it = model(), model(**asdict(ALL))
    x, state = batch(), plain.initial_state(3)
    torch.testing.assert_close(all_of_it.loss(x, x, state)[0], plain.loss(x, x, state)[0])
    one, other = (all_of_it.loss(x, x, state, noise(seed))[0] for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("name", [n for n, v in asdict(ALL).items() if isinstance(v, float)])
def test_each_option_has_an_effect_and_is_reproducible(name: str) -> None:
    """Each option changes either the loss or the penalty, reproducibly."""
    made, x = model(**{name: 0.5}), batch()
    nats, penalty, _ = made.loss(x, x, made.initial_state(3), noise())
    plain = model().loss(x, x, made.initial_state(3), noise())[0]
    if name in ("ar", "tar"):
        assert nats == plain, "the reported loss excludes the penalty"
        assert penalty > 0
    else:
        assert nats != plain
        assert penalty == 0
    again = made.loss(x, x, made.initial_state(3), noise())
    assert torch.equal(torch.stack((nats, penalty)), torch.stack(again[:2]))


@pytest.mark.parametrize("vocab_size", [11, SMALL + 1])
def test_embedding_dropout_drops_a_token_at_all_positions(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small vocabulary, which uses the table, and a larger one, which does not."""
    made, x = model(vocab_size, embedding_dropout=0.5), batch(11)
    seen: list[tuple[Tensor, Tensor | None]] = []
    run = made.recurrent.forward

    def watched(x: Tensor, state: Tensor, noise: Any, rows: Tensor | None, starts: None) -> Any:
        seen.append((x, rows))
        return run(x, state, noise, rows, starts)

    monkeypatch.setattr(made.recurrent, "forward", watched)
    made.loss(x, x, made.initial_state(3), noise())
    ((read, rows_TB),) = seen
    assert (rows_TB is not None) == (vocab_size == 11)
    read_TBE = read if rows_TB is None else read[rows_TB]
    plain_TBE = made.head.embed(x.t())
    factor = (read_TBE / plain_TBE).detach()
    torch.testing.assert_close(factor, factor[..., :1].expand_as(factor))
    factors = {}
    for token, value in zip(x.t().flatten().tolist(), factor[..., 0].flatten(), strict=True):
        assert factors.setdefault(token, round(value.item(), 3)) == round(value.item(), 3)
    assert set(factors.values()) == {0.0, 2.0}


def test_penalty_matches_the_formula() -> None:
    generator = np.random.default_rng(0)
    h, d = generator.normal(size=(2, 5, 3, 4))
    wanted = 2.0 * (d**2).mean() + 0.5 * ((h[1:] - h[:-1]) ** 2).mean()
    found = activation_penalty(torch.tensor(h), torch.tensor(d), alpha=2.0, beta=0.5)
    torch.testing.assert_close(found.item(), wanted)
    one_step = activation_penalty(torch.tensor(h[:1]), torch.tensor(d[:1]), alpha=0.0, beta=0.5)
    assert one_step == 0


def test_output_dropout_defaults_to_dropout() -> None:
    assert Regularization(dropout=0.2).output_dropout == 0.2
    assert Regularization(dropout=0.2, output_dropout=0.0).output_dropout == 0.0


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"weight_drop": -0.1}, {"ar": float("nan")}, {"tar": float("inf")}]
)
def test_invalid_values_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(ALL, **wrong)
