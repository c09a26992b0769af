"""Sequences in one row equal the same sequences run one by one; padding counts nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gru_lm.model import packing
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.native import build
from gru_lm.model.native.kernels import bf16_available
from gru_lm.model.recurrent import BACKENDS, Recurrent
from gru_lm.model.regularize import Regularization
from gru_lm.text.batches import Batch
from gru_lm.training.loop import TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule

kernels = pytest.mark.skipif(not build.available(), reason=f"no kernels: {build.problem()}")
bf16 = pytest.mark.skipif(not bf16_available(), reason="no AVX512_BF16, or no compiler")
backends = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=kernels if name == "native" else ()) for name in BACKENDS]
)
# One string a row, one character a step: S where a sequence starts.
LAYOUTS = {
    "first step": ["S....", ".....", "S...."],
    "last step": ["....S", ".....", "S...S"],
    "several": ["..SSS.S", "SSSSSSS", ".......", ".S...S."],
    "one row": ["..S.S..."],
    "one step": ["S", ".", "S"],
    "one of each": ["S"],
    "many rows": ["...S..S", "S......", ".S.S.S.", "......."] * 5 + ["..S...."],
}


def starts_of(layout: list[str]) -> Tensor:
    return torch.tensor([[step == "S" for step in row] for row in layout]).t()


def stack_of(cell: str, backend: str, **options: Any) -> Recurrent:
    torch.manual_seed(len(cell))
    stack = Recurrent(cell, **{"inputs": 3, "width": 33, "layers": 2} | options, backend=backend)
    for parameter in stack.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) / stack.layers[0].width ** 0.5
    return stack


def inputs_of(stack: Recurrent, starts_TB: Tensor) -> list[Tensor]:
    """Random inputs, states, and weights of the outputs and of the final states, in float64."""
    (T, B), (cell, *_) = starts_TB.shape, stack.layers
    torch.manual_seed(T * 100 + B)
    D, H, L = cell.weight_ih_l0.shape[1], cell.width, len(stack.layers)
    shapes = ((T, B, D), (L, stack.states, B, H), (T, B, H), (L, stack.states, B, H))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def results(
    stack: Recurrent, inputs: list[Tensor], starts_TB: Tensor, *, apart: bool = False
) -> list[Tensor]:
    """Outputs, final states and all gradients; `apart` runs every sequence by itself."""
    dtype = next(stack.parameters()).dtype
    x, state, weight, weight_after = (t.to(dtype, copy=True) for t in inputs)
    x.requires_grad_(), state.requires_grad_()
    stack.zero_grad()
    if apart:
        (T, B), out, after = starts_TB.shape, torch.zeros_like(weight), torch.zeros_like(state)
        for b in range(B):
            cuts = [0, *(t for t in range(1, T) if starts_TB[t, b]), T]
            for begin, end in itertools.pairwise(cuts):
                fresh = begin > 0 or bool(starts_TB[0, b])
                before = torch.zeros_like(state[:, :, :1]) if fresh else state[:, :, b : b + 1]
                part, last = stack(x[begin:end, b : b + 1], before, None)
                out[begin:end, b] = part[:, 0]
            after[:, :, b] = last[:, :, 0]
    else:
        out, after = stack(x, state, None, None, starts_TB)
    ((out * weight).sum() + (after * weight_after).sum()).backward()
    gradients = [t.grad for t in (x, state, *stack.parameters())]
    return [out.detach(), after.detach(), *(torch.zeros(1) if g is None else g for g in gradients)]


def assert_equal(expected: list[Tensor], found: list[Tensor], tolerance: float) -> None:
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1e-3)


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@backends
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_sequences_run_one_by_one(cell: str, backend: str, layout: str) -> None:
    """In float64 where the backend computes in it, and in float32."""
    starts_TB = starts_of(LAYOUTS[layout])
    exact, stack = stack_of(cell, "reference").double(), stack_of(cell, backend)
    inputs = inputs_of(stack, starts_TB)
    expected = results(exact, inputs, starts_TB, apart=True)
    assert_equal(expected, results(stack, inputs, starts_TB), 1e-5)
    if backend != "native":
        assert_equal(expected, results(stack.double(), inputs, starts_TB), 1e-12)


@kernels
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("width", [1, 31, 64, 96, 257])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_kernels_at_all_widths_and_threads(cell: str, width: int, threads: int) -> None:
    starts_TB = starts_of(LAYOUTS["many rows"])
    sizes = {"width": width, "layers": 1}
    exact, stack = stack_of(cell, "reference", **sizes).double(), stack_of(cell, "native", **sizes)
    inputs = inputs_of(stack, starts_TB)
    with threads_set(threads):
        found = results(stack, inputs, starts_TB)
    assert_equal(results(exact, inputs, starts_TB), found, 1e-5)


@bf16
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [5, 64, 96])
def test_bfloat16_equals_itself_one_by_one(cell: str, layout: str, width: int) -> None:
    starts_TB = starts_of(LAYOUTS[layout])
    stack = stack_of(cell, "native", width=width)
    inputs = inputs_of(stack, starts_TB)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(stack, inputs, starts_TB)
        expected = results(stack, inputs, starts_TB, apart=True)
    for one, other in zip(expected, found, strict=True):
        # Sums over other numbers of rows may round differently.
        assert (one - other).norm() <= 2e-3 * one.norm().clamp(min=1e-3)


@kernels
@settings(max_examples=60, deadline=None)
@given(
    cell=st.sampled_from(list(CELLS)),
    backend=st.sampled_from(["native", "fused"]),
    layout=st.tuples(st.integers(1, 9), st.integers(1, 12)).flatmap(
        lambda size: st.lists(
            st.text("S.", min_size=size[0], max_size=size[0]),
            min_size=size[1],
            max_size=size[1],
        )
    ),
)
def test_any_layout(cell: str, backend: str, layout: list[str]) -> None:
    starts_TB = starts_of(layout)
    exact, stack = stack_of(cell, "reference", width=7).double(), stack_of(cell, backend, width=7)
    inputs = inputs_of(stack, starts_TB)
    expected = results(exact, inputs, starts_TB, apart=True)
    assert_equal(expected, results(stack, inputs, starts_TB), 1e-5)


@kernels
@pytest.mark.parametrize("cell", CELLS)
def test_the_kernels_need_no_packed_sequences(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(packing, "run")
    starts_TB = starts_of(LAYOUTS["several"])
    stack = stack_of(cell, "native")
    results(stack, inputs_of(stack, starts_TB), starts_TB)


@backends
@pytest.mark.parametrize("cell", CELLS)
def test_what_was_not_finite_does_not_pass(cell: str, backend: str) -> None:
    stack = stack_of(cell, backend)
    x, state = torch.randn(4, 2, 3), torch.zeros(2, stack.states, 2, 33)
    x[1, 0], state[:, :, 1] = torch.nan, torch.inf
    starts_TB = starts_of(["..S.", "S..."])
    out, after = stack(x, state, None, None, starts_TB)
    assert out[1, 0].isnan().all()
    assert out[2:, 0].isfinite().all()
    assert out[:, 1].isfinite().all()
    assert after.isfinite().all()


@backends
@pytest.mark.parametrize("cell", CELLS)
def test_without_a_start_a_row_is_running_text(cell: str, backend: str) -> None:
    stack = stack_of(cell, backend)
    starts_TB = starts_of(["......."] * 5)
    inputs = inputs_of(stack, starts_TB)
    x, state = inputs[0].float(), inputs[1].float()
    for found, expected in zip(
        stack(x, state, None, None, starts_TB), stack(x, state, None), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# ---- the language model: regularization, the table of inputs, padding ----

V = 11
HEADS: dict[str, dict[str, Any]] = {
    "full": {"tied": False},
    "tied": {"tied": True},
    "shared rows": {"tied": True, "rows": 6},
    "adaptive": {"tied": True, "cutoffs": (4, 7)},
}
TOKENS = ["S....S.", "..S....", "S......", "...S..."]
LENGTHS = (7, 5, 6, 3)  # of the rows, without padding
RESET_WEIGHTS = {"ar": 0.3, "tar": 0.7}


def model_of(
    head: str, cell: str = "gru", backend: str = "reference", **regularization: Any
) -> LanguageModel:
    torch.manual_seed(3)
    config = ModelConfig(
        cell=cell, vocab_size=V, layers=2, width=8, embed=6, residual=True, **HEADS[head]
    )
    model = LanguageModel(
        config, backend=backend, regularization=Regularization(**regularization)
    ).double()
    model.set_unigram(torch.tensor([5.0] * 5 + [0.0] * 6) if config.rows else torch.arange(V))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, targets padded to LENGTHS, starts, and states of two layers of 8 units."""
    torch.manual_seed(4)
    starts_BT = starts_of(TOKENS).t()
    inputs_BT, targets_BT = torch.randint(V, (2, *starts_BT.shape))
    for target_T, length in zip(targets_BT, LENGTHS, strict=True):
        target_T[length:] = -1
    return inputs_BT, targets_BT, starts_BT, torch.randn(2, 1, len(TOKENS), 8, dtype=torch.float64)


def gradients(model: LanguageModel, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("head", HEADS)
def test_padding_counts_nothing(head: str) -> None:
    model = model_of(head)
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    nats, penalty, after_LSBH = model.loss(inputs_BT, targets_BT, state_LSBH, starts_BT=starts_BT)
    assert penalty == 0
    found = gradients(model, nats)
    rows = [slice(b, b + 1) for b in range(len(LENGTHS))]
    sums = [
        length
        * model.loss(
            inputs_BT[b, :length],
            targets_BT[b, :length],
            state_LSBH[:, :, b],
            starts_BT=starts_BT[b, :length],
        )[0]
        for b, length in zip(rows, LENGTHS, strict=True)
    ]
    for one, other in zip(
        gradients(model, torch.stack(sums).sum() / sum(LENGTHS)), found, strict=True
    ):
        torch.testing.assert_close(other, one)
    log_probs_BT, same_LSBH = model.target_log_probs(inputs_BT, targets_BT, state_LSBH, starts_BT)
    assert torch.equal(same_LSBH, after_LSBH)
    assert (log_probs_BT[targets_BT < 0] == 0).all()
    assert (log_probs_BT[targets_BT >= 0] < 0).all()
    torch.testing.assert_close(-log_probs_BT.sum() / sum(LENGTHS), nats.detach())
    log_probs_BTV = model.head.log_probs(model.hidden(inputs_BT, state_LSBH, starts_BT)[0])
    expected_BT = log_probs_BTV.gather(2, targets_BT.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(log_probs_BT, expected_BT.detach() * (targets_BT >= 0))


@pytest.mark.parametrize("head", HEADS)
def test_rows_of_padding_alone_have_no_log_probabilities(head: str) -> None:
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    nothing_BT = torch.full_like(targets_BT, -1)
    found_BT, _ = model_of(head).target_log_probs(inputs_BT, nothing_BT, state_LSBH, starts_BT)
    assert torch.equal(found_BT, torch.zeros_like(found_BT))


def test_inputs_of_padding_are_arbitrary() -> None:
    model = model_of("tied", ar=0.3, tar=0.7)
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    found = []
    for token in (0, 5):
        given_BT = inputs_BT.masked_fill(targets_BT < 0, token)
        nats, penalty, _ = model.loss(given_BT, targets_BT, state_LSBH, starts_BT=starts_BT)
        found.append(gradients(model, nats + penalty))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("head", HEADS)
def test_full_batches_of_records_are_as_running_text(head: str) -> None:
    """Without starts and padding, the loss is that of running text to the bit."""
    model = model_of(head, ar=0.3)
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    targets_BT = targets_BT.clamp(min=0)
    none_BT = torch.zeros_like(starts_BT)
    expected = model.loss(inputs_BT, targets_BT, state_LSBH)
    found = model.loss(inputs_BT, targets_BT, state_LSBH, starts_BT=none_BT)
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[2], found[2])
    torch.testing.assert_close(expected[1], found[1])


def test_penalties_leave_out_padding_and_steps_across_a_start() -> None:
    model = model_of("tied", **RESET_WEIGHTS)
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    targets_BT[2, 3] = -1  # within a sequence
    _, penalty, _ = model.loss(inputs_BT, targets_BT, state_LSBH, starts_BT=starts_BT)
    h_TBH, _ = model._outputs(inputs_BT, state_LSBH, None, starts_BT)
    counted = [(t, b) for b, t in (targets_BT >= 0).nonzero().tolist()]
    squares = [h_TBH[at].square().mean() for at in counted]
    changes = [
        (h_TBH[t, b] - h_TBH[t - 1, b]).square().mean()
        for t, b in counted
        if (t - 1, b) in counted and not starts_BT[b, t]
    ]
    expected = RESET_WEIGHTS["ar"] * torch.stack(squares).mean()
    expected = expected + RESET_WEIGHTS["tar"] * torch.stack(changes).mean()
    torch.testing.assert_close(penalty, expected)


def test_a_penalty_without_steps_to_compare_is_zero() -> None:
    model = model_of("tied", tar=0.7)
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    everywhere_BT = torch.ones_like(starts_BT)
    _, penalty, _ = model.loss(inputs_BT, targets_BT, state_LSBH, starts_BT=everywhere_BT)
    assert penalty == 0


@backends
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("table", [False, True])
def test_regularization_and_the_table_work_with_starts(
    cell: str, backend: str, table: bool
) -> None:
    """Every backend against the reference, with the same dropout masks."""
    options = {"dropout": 0.3, "weight_drop": 0.2, "embedding_dropout": 0.2, "locked": True}
    if not table:  # dropout of the input needs its own product for every token
        options["input_dropout"] = 0.2
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    found = []
    for name in ("reference", backend):
        model = model_of("tied", cell, name, **options)
        if name == "native":
            model.float()
        state = state_LSBH.expand(2, model.recurrent.states, -1, -1).to(model.head.bias.dtype)
        noise = torch.Generator().manual_seed(1)
        nats, penalty, after = model.loss(inputs_BT, targets_BT, state, noise, starts_BT)
        found.append([after.detach(), *gradients(model, nats + penalty)])
    assert_equal(*found, 2e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_training_passes_starts_on_and_counts_targets(padded: bool) -> None:
    model = model_of("tied").float()
    inputs_BT, targets_BT, starts_BT, state_LSBH = batch()
    if not padded:
        targets_BT = targets_BT.clamp(min=0)
    given = Batch(
        inputs_BT.numpy(), targets_BT.numpy(), np.zeros(len(LENGTHS), bool), starts_BT.numpy()
    )
    nats, _, after_LSBH = model.loss(inputs_BT, targets_BT, state_LSBH.float(), starts_BT=starts_BT)
    state = TrainState(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.amp.GradScaler("cpu", enabled=False),
        state_LSBH.float(),
    )
    report = next(
        train_steps(
            state,
            lambda position: given,
            budget=Budget(steps=1, seconds=None),
            schedule=Schedule(kind="constant", lr=0.1, warmup=0),
            clip=1.0,
            seed=0,
            precision="float32",
            clock=lambda: 0.0,
        )
    )
    assert report.loss == pytest.approx(nats.item())
    torch.testing.assert_close(state.hidden_LSBH, after_LSBH.detach())
    assert state.tokens == (sum(LENGTHS) if padded else targets_BT.numel())
