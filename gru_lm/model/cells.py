"""The recurrent cells, one short class each, to be read beside their equations.

A cell is one layer. `project` is what does not depend on the state (W x + b, all steps in one
product); `step` is the recurrence, one step, written as the equation is. Running a cell over time
is recurrent.py's business. Cells know nothing of tokens, files or training.

The classes derived from torch.nn.GRU, LSTM and RNN own exactly those modules' parameters (names and
gate order), so that cuDNN and oneDNN run them and other programs can read them. Every cell starts
with orthogonal recurrent matrices, gate by gate, and with a bias of 1 in the direction of keeping
the old state, so that none has a trick that another lacks.

Shapes: T time, B batch, D input, H hidden (width), G gates x H, S states of a cell (h, maybe c).
Equations: σ logistic, ⊙ elementwise, h₋ the state before. CONTRIBUTING.md: how to add a cell.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

State = tuple[Tensor, ...]  # S tensors [B, H]; the first is the output


class Cell(nn.Module):
    """One recurrent layer: parameters, `project` and `step`."""

    gates: ClassVar[tuple[str, ...]]  # the row blocks of the weights, in order
    states: ClassVar[int] = 1
    # The gate whose bias starts away from zero, and where: +1 where the gate keeps, −1 where it
    # replaces. The simple network has no gate to keep anything with.
    keep: ClassVar[tuple[str, float] | None] = None
    # Bias entries that no count of parameters has, in units of H: PyTorch's GRU, LSTM and RNN add a
    # second bias to every gate, of which only the GRU's inner one (b_hn) is not redundant.
    redundant_biases: ClassVar[int] = 0

    weight_ih_l0: Tensor  # [G, D]
    weight_hh_l0: Tensor  # [G, H]
    bias_ih_l0: Tensor  # [G]
    bias_hh_l0: Tensor  # [G], in PyTorch's three alone

    def project(self, x_TBD: Tensor) -> Tensor:
        """W x + b for every step: [T, B, G]."""
        return linear(x_TBD, self.weight_ih_l0, self.bias_ih_l0)

    def step(self, x_BG: Tensor, state: State) -> State:
        """One step from `state`, given this step's projected input."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """H, the number of hidden units."""
        return self.weight_hh_l0.shape[1]

    def parameter_count(self) -> int:
        """Weights and biases, redundant second biases left out."""
        return sum(p.numel() for p in self.parameters()) - self.redundant_biases * self.width

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier input weights, orthogonal recurrent weights, zero biases but for `keep`."""
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
                continue
            for block in parameter.chunk(len(self.gates)):
                if "weight_hh" in name:
                    nn.init.orthogonal_(block)
                else:
                    nn.init.xavier_uniform_(block)
        if self.keep:
            gate, value = self.keep
            self.bias_ih_l0.chunk(len(self.gates))[self.gates.index(gate)].fill_(value)


class RNN(nn.RNN, Cell):
    """h = tanh(W x + U h₋ + b)  (Elman 1990)."""

    gates = ("h",)
    redundant_biases = 1

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__(input_size, width)
        self.initialise()

    def step(self, x_BG: Tensor, state: State) -> State:
        (h,) = state
        return (torch.tanh(x_BG + linear(h, self.weight_hh_l0, self.bias_hh_l0)),)


class GRU(nn.GRU, Cell):
    """r, z = σ(W x + U h₋ + b); n = tanh(W_n x + b_in + r⊙(U_n h₋ + b_hn)); h = (1−z)⊙n + z⊙h₋.

    Reset after the product, as cuDNN and PyTorch have it; z keeps (Cho et al. 2014).
    """

    gates = ("r", "z", "n")
    keep = ("z", 1.0)
    redundant_biases = 2

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__(input_size, width)
        self.initialise()

    def step(self, x_BG: Tensor, state: State) -> State:
        (h,) = state
        x_r, x_z, x_n = x_BG.chunk(3, -1)
        u_r, u_z, u_n = linear(h, self.weight_hh_l0, self.bias_hh_l0).chunk(3, -1)
        r = torch.sigmoid(x_r + u_r)
        z = torch.sigmoid(x_z + u_z)
        n = torch.tanh(x_n + r * u_n)
        return ((1 - z) * n + z * h,)


class GRUBefore(Cell):
    """Γu, Γr = σ(W[c₋, x] + b); c̃ = tanh(W_c[Γr⊙c₋, x] + b_c); c = Γu⊙c̃ + (1−Γu)⊙c₋; a = c.

    Reset before the product: a step is two products in sequence. Γu replaces (Ng's notation).
    """

    gates = ("u", "r", "c")
    keep = ("u", -1.0)

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * width, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * width, width))
        self.bias_ih_l0 = nn.Parameter(torch.empty(3 * width))
        self.initialise()

    def step(self, x_BG: Tensor, state: State) -> State:
        (c,) = state
        H = self.width
        x_ur, x_c = x_BG[:, : 2 * H], x_BG[:, 2 * H :]
        U_ur, U_c = self.weight_hh_l0[: 2 * H], self.weight_hh_l0[2 * H :]
        update, reset = torch.sigmoid(x_ur + linear(c, U_ur)).chunk(2, -1)
        candidate = torch.tanh(x_c + linear(reset * c, U_c))
        return (update * candidate + (1 - update) * c,)


class LSTM(nn.LSTM, Cell):
    """i, f, o = σ(W x + U h₋ + b); g = tanh(W_g x + U_g h₋ + b_g); c = f⊙c₋ + i⊙g; h = o⊙tanh(c).

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
    """

    gates = ("i", "f", "g", "o")
    states = 2
    keep = ("f", 1.0)
    redundant_biases = 4

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__(input_size, width)
        self.initialise()

    def step(self, x_BG: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (x_BG + linear(h, self.weight_hh_l0, self.bias_hh_l0)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LSTMThread(Cell):
    """c̃ = tanh(W_c[a₋, x] + b_c); Γu, Γf, Γo = σ(W[a₋, x] + b); c = Γu⊙c̃ + Γf⊙c₋; a = Γo⊙c.

    As the question this tool answers writes the LSTM: no tanh on the output.
    """

    gates = ("c", "u", "f", "o")
    states = 2
    keep = ("f", 1.0)

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * width, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * width, width))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * width))
        self.initialise()

    def step(self, x_BG: Tensor, state: State) -> State:
        a, c = state
        candidate, u, f, o = (x_BG + linear(a, self.weight_hh_l0)).chunk(4, -1)
        c = torch.sigmoid(u) * torch.tanh(candidate) + torch.sigmoid(f) * c
        return torch.sigmoid(o) * c, c


CELLS: dict[str, type[RNN | GRU | GRUBefore | LSTM | LSTMThread]] = {
    "gru": GRU,
    "gru-before": GRUBefore,
    "lstm": LSTM,
    "lstm-thread": LSTMThread,
    "rnn": RNN,
}
