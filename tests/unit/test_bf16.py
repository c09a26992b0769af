"""bfloat16 products on a CPU, against float64 with factors rounded to bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gru_lm.model import cells
from gru_lm.model.cells import CELLS
from gru_lm.model.cross_entropy import linear_cross_entropy
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.native.kernels import bf16_available, bf16_product
from gru_lm.model.products import linear
from gru_lm.model.recurrent import Recurrent
from tests.inside import inside

pytestmark = pytest.mark.skipif(not bf16_available(), reason="no AVX512_BF16, or no compiler")


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


class RoundedLinear(torch.autograd.Function):
    """W x with both factors of every product rounded, in the forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(x), rounded(weight))
        return rounded(x) @ rounded(weight).t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return rounded(dy) @ weight, rounded(dy).flatten(0, -2).t() @ x.flatten(0, -2)


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = RoundedLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias


def error(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).detach().norm() / expected.detach().norm().clamp(min=1e-30))


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SIZES = [(1, 1, 1), (5, 7, 3), (24, 323, 256), (33, 96, 255), (100, 31, 700), (1, 256, 31)]
SIZES += [(8, 48, 256), (9, 49, 257), (300, 16, 1152), (64, 64, 0)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_all_shapes(size: tuple[int, int, int], turned: str, threads: int) -> None:
    N, G, K = size
    torch.manual_seed(N)
    a = torch.randn(K, N).t() if "a" in turned else torch.randn(N, K)
    b = torch.randn(K, G).t() if "b" in turned else torch.randn(G, K)
    bias, start = torch.randn(G), torch.randn(N, G)
    expected = rounded(a) @ rounded(b).t()
    with threads_set(threads):
        found, added = bf16_product(a, b, bias), bf16_product(a, b, add_to=start.clone())
    assert error(expected + bias, found) < 1e-6
    assert error(expected + start, added) < 1e-6


def test_rounding_matches_pytorch() -> None:
    bits = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    x = x[x.isfinite() & (x.abs() > 1e-37)]  # the instructions flush smaller numbers to zero
    found = bf16_product(x[:, None], torch.ones(1, 1))[:, 0]
    assert torch.equal(found, x.bfloat16().float())


def test_nan_and_infinity_propagate() -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [1.0, 1.0]])
    found = bf16_product(x, torch.ones(1, 2))[:, 0].tolist()
    assert found[0] != found[0]
    assert found[1:] == [float("inf"), 2.0]


# Two threads split the streams if there are enough, the hidden units otherwise.
SHAPES = [(1, 1, 1, 1), (2, 1, 9, 64), (4, 5, 3, 7), (4, 7, 5, 96), (6, 17, 33, 64)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_cells(
    cell: str,
    shape: tuple[int, int, int, int],
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    T, B, D, H = shape
    torch.manual_seed(T * 1000 + H)
    exact = Recurrent(cell, inputs=D, width=H, layers=1, backend="reference").double()
    for parameter in exact.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) / H**0.5
    native = Recurrent(cell, inputs=D, width=H, layers=1, backend="native")
    native.load_state_dict(exact.state_dict())
    x = torch.randn(B, T, D, dtype=torch.float64).transpose(0, 1)
    state = torch.randn(1, exact.states, B, H, dtype=torch.float64)
    weight = torch.randn(T, B, H, dtype=torch.float64)

    def results(stack: Recurrent, dtype: torch.dtype) -> list[Tensor]:
        given, before = (t.to(dtype, copy=True).requires_grad_() for t in (x, state))
        stack.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            out, after = stack(given, before, None)
        ((out * weight).sum() + 2 * after.sum()).backward()
        gradients = [t.grad for t in (given, before, *stack.parameters())]
        assert all(gradient is not None for gradient in gradients)
        return [out.detach(), after.detach(), *(g for g in gradients if g is not None)]

    expected = results(exact, torch.float64)
    with threads_set(threads):
        found = results(native, torch.float32)
    monkeypatch.setattr(cells, "linear", rounded_linear)
    emulated = results(exact, torch.float64)
    for one, same, other in zip(expected, emulated, found, strict=True):
        assert other.dtype == torch.float32
        assert error(one, other) < 0.03
        # Sums are in float32, so a few values round differently.
        assert error(same, other) < (1e-5 if T * H < 200 else 1e-3)


def test_layers_and_softmax() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 9, 33), torch.randn(50, 33), torch.randn(50)
    targets = torch.randint(50, (36,))
    given = [t.requires_grad_() for t in (x, weight, bias)]
    double = [t.detach().double().requires_grad_() for t in given]
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight, bias)
        nats = linear_cross_entropy(x.flatten(0, 1), weight, bias, targets)
    expected = rounded_linear(*double)
    (nats / 36 + y.square().mean()).backward()
    logits = expected.flatten(0, 1)
    nats_expected = torch.nn.functional.cross_entropy(logits, targets)
    (nats_expected + expected.square().mean()).backward()
    assert error(expected, y) < 1e-6
    assert error(nats_expected, nats / 36) < 1e-6
    for one, other in zip(double, given, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        # The sum of two gradients is rounded in one case, each gradient in the other.
        assert error(one.grad, other.grad) < 0.01


@pytest.mark.parametrize("cell", CELLS)
def test_only_training_is_in_bfloat16(cell: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, vocab_size=30, layers=2, width=33, embed=20, tied=True)
    model = LanguageModel(config, backend="native")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens = torch.randint(30, (3, 11))
    state = model.initial_state(3)
    before = model.log_probs(tokens, state)[0]
    whole = model.loss(tokens, tokens, state)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(tokens, tokens, state)
    rough[0].backward()
    assert rough[0].dtype == rough[-1].dtype == torch.float32
    assert 0 < (whole[0] - rough[0]).abs() < 0.01 * whole[0]
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.log_probs(tokens, state)[0], before)


def test_a_run_trains_and_resumes_in_bfloat16(tmp_path: Path, text: Path) -> None:
    options = ("--steps", 3, "--width", 8, "--tokenizer", "byte", "--precision", "bf16")
    found = inside(tmp_path, "train", text, "--out", "run", "--json", *options).json()
    assert found["steps"] == 3
    inside(tmp_path, "train", "--resume", "run")


def test_bf16_run_resumes_on_a_machine_without_bf16_and_back(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", 3, "--width", 8, "--tokenizer", "byte", "--precision", "bf16")
    inside(tmp_path, "train", text, "--out", "run", *options)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("gru_lm.commands.train.resume.bf16_available", lambda: False)
        for more in ((), ("--steps", 2)):
            said = inside(tmp_path, "train", "--resume", "run", *more).err
            assert "resumed in float32: this processor has no bf16" in said
    found = inside(tmp_path, "train", "--resume", "run", "--steps", 1, "--json")
    assert found.json()["steps"] == 6
    assert "float32" not in found.err
