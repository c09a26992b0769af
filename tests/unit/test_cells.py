"""Each cell against a literal transcription of its equation, in float64; gradients; initialization."""

import math

import pytest
import torch
from torch import Tensor

from gru_lm.model.cells import CELLS, Cell
from gru_lm.model.devices import choose_device
from gru_lm.model.recurrent import Recurrent
from gru_lm.model.regularize import Regularization

D, H, B, T = 3, 4, 2, 5


def sigmoid(v: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-v))


def literal(name: str, cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step, gate by gate, with explicitly sliced weights. Shapes [B, D] and [B, H]."""
    W = {g: cell.weight_ih_l0[i * H : (i + 1) * H] for i, g in enumerate(cell.gates)}
    U = {g: cell.weight_hh_l0[i * H : (i + 1) * H] for i, g in enumerate(cell.gates)}
    b = {g: cell.bias_ih_l0[i * H : (i + 1) * H] for i, g in enumerate(cell.gates)}
    second = getattr(cell, "bias_hh_l0", torch.zeros(len(cell.gates) * H, dtype=x.dtype))
    b2 = {g: second[i * H : (i + 1) * H] for i, g in enumerate(cell.gates)}

    def pre(gate: str, h: Tensor) -> Tensor:
        return x @ W[gate].T + b[gate] + h @ U[gate].T + b2[gate]

    if name == "rnn":
        (h,) = state
        return (torch.tanh(pre("h", h)),)
    if name == "gru":
        (h,) = state
        r, z = sigmoid(pre("r", h)), sigmoid(pre("z", h))
        n = torch.tanh(x @ W["n"].T + b["n"] + r * (h @ U["n"].T + b2["n"]))
        return ((1 - z) * n + z * h,)
    if name == "gru-before":
        (c,) = state
        u, r = sigmoid(pre("u", c)), sigmoid(pre("r", c))
        candidate = torch.tanh(x @ W["c"].T + b["c"] + (r * c) @ U["c"].T)
        return (u * candidate + (1 - u) * c,)
    if name == "lstm":
        h, c = state
        i, f, o = sigmoid(pre("i", h)), sigmoid(pre("f", h)), sigmoid(pre("o", h))
        c = f * c + i * torch.tanh(pre("g", h))
        return o * torch.tanh(c), c
    assert name == "lstm-thread"
    a, c = state
    u, f, o = sigmoid(pre("u", a)), sigmoid(pre("f", a)), sigmoid(pre("o", a))
    c = u * torch.tanh(pre("c", a)) + f * c
    return o * c, c


def make(name: str) -> tuple[Cell, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    cell = CELLS[name](D, H).double()
    with torch.no_grad():
        for parameter in cell.parameters():  # biases too: zeros would hide errors
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(B, D, dtype=torch.float64)
    state = tuple(torch.randn(B, H, dtype=torch.float64) for _ in range(cell.states))
    return cell, x, state


@pytest.mark.parametrize("name", CELLS)
def test_step_matches_its_equation(name: str) -> None:
    cell, x, state = make(name)
    stepped = cell.step(cell.project(x), state)
    for ours, expected in zip(stepped, literal(name, cell, x, state), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_gradients(name: str) -> None:
    cell, x, state = make(name)
    names = [name for name, _ in cell.named_parameters()]

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        hidden, parameters = rest[: len(state)], rest[len(state) :]
        weights = dict(zip(names, parameters, strict=True))

        class Wrapped(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell = cell

            def forward(self, x: Tensor, hidden: tuple[Tensor, ...]) -> Tensor:
                for _ in range(2):
                    hidden = self.cell.step(self.cell.project(x), hidden)
                return torch.cat(hidden)

        named = {f"cell.{name}": value for name, value in weights.items()}
        return torch.func.functional_call(Wrapped(), named, (x, hidden))

    inputs = [x, *state, *(p.detach().clone() for p in cell.parameters())]
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_fused_matches_reference(name: str, layers: int) -> None:
    torch.manual_seed(1)
    kind = Regularization(dropout=0.3, weight_drop=0.4, locked=layers > 1)
    sizes = {"inputs": D, "width": H, "layers": layers, "regularization": kind}
    fused = Recurrent(name, **sizes, backend="fused").double()
    reference = Recurrent(name, **sizes, backend="reference").double()
    reference.load_state_dict(fused.state_dict())
    x = torch.randn(T, B, D, dtype=torch.float64)
    state = torch.randn(layers, fused.states, B, H, dtype=torch.float64)
    for noise_seed in (None, 7):
        results = []
        for stack in (fused, reference):
            noise = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
            stack.zero_grad()
            out, after = stack(x, state, noise)
            (out.square().sum() + after.sum()).backward()
            results.append((out, after, [p.grad for p in stack.parameters()]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "blocks", "extra"),
    [("rnn", 1, 0), ("gru", 3, H), ("gru-before", 3, 0), ("lstm", 4, 0), ("lstm-thread", 4, 0)],
)
def test_parameter_counts_match_the_table(name: str, blocks: int, extra: int) -> None:
    assert CELLS[name](D, H).parameter_count() == blocks * (H * (D + H) + H) + extra


@pytest.mark.parametrize("name", CELLS)
def test_initialization(name: str) -> None:
    cell = CELLS[name](D, 32)
    for block in cell.weight_hh_l0.chunk(len(cell.gates)):
        torch.testing.assert_close(block @ block.T, torch.eye(32), atol=1e-5, rtol=0)
    biases = dict(zip(cell.gates, cell.bias_ih_l0.chunk(len(cell.gates)), strict=True))
    keep = cell.keep or ("", 0.0)
    for gate, bias in biases.items():
        assert torch.all(bias == (keep[1] if gate == keep[0] else 0.0))
    if name != "rnn":  # all gated cells initially keep the same share of the old state, σ(1)
        replaces = name == "gru-before"
        kept = sigmoid(torch.tensor(keep[1]))
        assert (1 - kept if replaces else kept) == pytest.approx(1 / (1 + math.exp(-1)))


def test_devices() -> None:
    from gru_lm.errors import EnvironmentProblem, UsageError

    assert choose_device("cpu") == torch.device("cpu")
    for wrong in ("tpu", "cpu:1", "cuda:x", ""):
        with pytest.raises(UsageError):
            choose_device(wrong)
    with pytest.raises(EnvironmentProblem):
        choose_device("cuda:99")
