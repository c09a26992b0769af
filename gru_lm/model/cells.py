"""The recurrent cells, one short class each, next to its equation.

A cell is one layer. `project` computes the part that does not depend on the state (W x + b, all steps in
one product); `step` computes one step of the recurrence, written like its equation. Unrolling over time
is left to recurrent.py. Independent of tokens, files and training.

The subclasses of torch.nn.GRU, LSTM and RNN have exactly those modules' parameters (names and gate
order), which lets cuDNN and oneDNN run them and other programs read them. For a fair comparison, all
cells share one initialization: orthogonal recurrent matrices per gate, and gate biases of ±1 that favour
keeping the old state.

Shapes: T time, B batch, D input, H hidden (width), G gates x H, S states of a cell (h, maybe c).
Notation: σ logistic, ⊙ elementwise, h₋ the previous state. CONTRIBUTING.md explains how to add a cell.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

State = tuple[Tensor, ...]  # S tensors [B, H]; the first is the output


class Cell(nn.Module):
    """One recurrent layer: parameters, `project` and `step`."""

    gates: ClassVar[tuple[str, ...]]  # row blocks of the weights, in order
    states: ClassVar[int] = 1
    # Gate with a non-zero initial bias: +1 if the gate keeps the old state, −1 if it replaces it. None
    # for the simple RNN, which has no such gate.
    keep: ClassVar[tuple[str, float] | None] = None
    # Biases excluded from parameter counts, in units of H. PyTorch's GRU, LSTM and RNN have a second
    # bias per gate; all but the GRU's inner one (b_hn) are redundant.
    redundant_biases: ClassVar[int] = 0

    weight_ih_l0: Tensor  # [G, D]
    weight_hh_l0: Tensor  # [G, H]
    bias_ih_l0: Tensor  # [G]
    bias_hh_l0: Tensor  # [G], only in the subclasses of torch.nn modules

    def project(self, x_TBD: Tensor) -> Tensor:
        """W x + b for all steps, [T, B, G]."""
        return linear(x_TBD, self.weight_ih_l0, self.bias_ih_l0)

    def step(self, x_BG: Tensor, state: State) -> State:
        """The next state, S tensors [B, H], from `state` and this step's projected input [B, G]."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """The number of hidden units, H."""
        return self.weight_hh_l0.shape[1]

    def parameter_count(self) -> int:
        """Number of weights and biases, without redundant second biases."""
        return sum(p.numel() for p in self.parameters()) - self.redundant_biases * self.width

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier input weights, orthogonal recurrent weights, zero biases except for `keep`."""
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

    Reset after the product, as in cuDNN and PyTorch; z keeps the old state (Cho et al. 2014).
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

    Reset before the product, which takes two sequential products per step. Γu replaces the old state
    (notation of Andrew Ng's course).
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

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
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

    An LSTM without tanh on the output, as written in the forum thread that prompted this project.
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
