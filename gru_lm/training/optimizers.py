"""Optimizers, the learning rate as a pure function of the budget's progress, averages of the weights.

Progress runs from 0 to 1 over the budget, whatever it is counted in, so that the rate has fallen
when the budget ends. Knows nothing of batches or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gru_lm.model.cells import Cell
from gru_lm.model.language_model import LanguageModel

FLOOR = 0.01  # of the highest rate: where the warm-up starts
MOMENTUM = 0.95  # of Muon
MOST_MUON_DECAY = 0.1  # of the matrices that it moves: what suits the others may hold these back
TURNS = 4  # of its steps, of which a matrix is moved in one; at 8 a step is too long
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
PATIENT = 5  # validations that NT-ASGD does not look back on


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: steps, seconds, or both (whichever ends first).

    Of the seconds, `began` were gone before the first step, and do not count as progress.
    """

    steps: int | None
    seconds: float | None
    began: float = 0.0

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used up, 0 to 1.

        >>> Budget(steps=100, seconds=None).progress(25, 99.0)
        0.25
        """
        by_steps = step / self.steps if self.steps else 0.0
        if self.seconds is None:
            return min(1.0, by_steps)
        if seconds >= self.seconds:
            return 1.0
        by_seconds = max(0.0, seconds - self.began) / (self.seconds - self.began)
        return min(1.0, max(by_steps, by_seconds))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate: a linear rise over `warmup`, then `kind` down to nothing at 1."""

    kind: str
    lr: float
    warmup: float

    def __call__(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1].

        >>> [round(Schedule(kind="linear", lr=1.0, warmup=0.5)(p), 2) for p in (0, 0.25, 0.5, 1)]
        [0.01, 0.5, 1.0, 0.0]
        """
        if progress < self.warmup:
            return self.lr * max(FLOOR, progress / self.warmup)
        left = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 1.0
        if self.kind == "cosine":
            return self.lr * (1 - math.cos(math.pi * left)) / 2
        return self.lr * left if self.kind == "linear" else self.lr


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for cells' matrices that are square gate by gate; AdamW for all else.

    The mean gradient (Nesterov's) of each gate's [H, H] block is made orthogonal, so that no direction
    of the state is changed faster than another: lr · √H / 4 each, which is as large as what AdamW
    does at `lr`. By three steps of Newton and Schulz with Polar Express' coefficients (Amsel et al.
    2025), in bfloat16 where the run is. The mean hardly changes from step to step, so the matrices take
    turns: each is moved every TURNS-th step, and TURNS times as far. They decay by `weight_decay`, but
    by no more than MOST_MUON_DECAY.
    """

    def __init__(
        self, model: LanguageModel, *, weight_decay: float, beta2: float, precision: str
    ) -> None:
        cells = [cell for cell in model.recurrent.layers if isinstance(cell, Cell)]
        every = [cell.weight_hh_l0 for cell in cells] + [cell.weight_ih_l0 for cell in cells]
        H = cells[0].weight_hh_l0.shape[1]
        matrices = [matrix for matrix in every if matrix.shape[1] == H]
        self._adamw = _adamw(_groups(model, weight_decay=weight_decay, without=matrices), beta2)
        decay = min(weight_decay, MOST_MUON_DECAY)
        super().__init__(matrices, {"lr": 0.0, "weight_decay": decay})
        self.param_groups += self._adamw.param_groups
        self._adamw.state = self.state
        self._gates = len(cells[0].gates)
        self._steps = 0  # in all, once one was made in this process
        self._dtype = torch.bfloat16 if precision == "bf16" else matrices[0].dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        assert closure is None, "the training loop has none"
        self._adamw.step()
        group = self.param_groups[0]
        matrices: list[Tensor] = group["params"]
        H = matrices[0].shape[1]
        # AdamW's count is in the checkpoint; on CUDA to read it is to wait.
        counting = self._adamw.param_groups[0]["params"][0]
        self._steps = self._steps + 1 if self._steps else int(self.state[counting]["step"])
        due, nesterov = [], []
        for number, matrix in enumerate(matrices):
            assert matrix.grad is not None
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            if (number + self._steps) % TURNS == 0:
                due.append(matrix)
                nesterov.append(matrix.grad.lerp(momentum, MOMENTUM))
        if not due:
            return
        update = orthogonal(torch.cat(nesterov).view(-1, H, H).to(self._dtype)).to(due[0])
        lr = TURNS * group["lr"] * H**0.5 / 4
        for matrix, change in zip(due, torch.split(update, self._gates), strict=True):
            matrix.mul_(1 - lr * group["weight_decay"]).sub_(change.reshape_as(matrix), alpha=lr)


def orthogonal(x_nHH: Tensor) -> Tensor:
    """The orthogonal matrices nearest to these, roughly: most singular values between 0.4 and 1.9."""
    exact = torch.promote_types(x_nHH.dtype, torch.float32)
    size_n11 = torch.linalg.vector_norm(x_nHH, dim=(1, 2), keepdim=True, dtype=exact)
    x_nHH = x_nHH / size_n11.clamp(min=1e-7).to(x_nHH.dtype)
    for a, b, c in POLAR_EXPRESS:
        gram = x_nHH @ x_nHH.mT
        x_nHH = torch.baddbmm(
            x_nHH, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x_nHH, beta=a
        )
    return x_nHH


def make_optimizer(
    model: LanguageModel,
    name: str,
    *,
    weight_decay: float,
    beta2: float = 0.999,
    precision: str = "float32",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), Muon, or SGD with momentum ("sgd") or without ("nt-asgd").

    The rate is set every step, and averages are the training loop's.

    Only matrices decay: not biases, whose start carries meaning.
    """
    if name == "muon":
        return Muon(model, weight_decay=weight_decay, beta2=beta2, precision=precision)
    groups = _groups(model, weight_decay=weight_decay)
    if name == "adamw":
        return _adamw(groups, beta2)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9 if name == "sgd" else 0.0)


def slots_at_most(name: str) -> int:
    """Numbers that a run keeps beside each weight: the optimizer's, or NT-ASGD's average."""
    return 2 if name in ("adamw", "muon") else 1


def slots(name: str, group: Mapping[str, Any]) -> tuple[str, ...]:
    """What an optimizer keeps for each parameter of one of its groups, once it has made a step."""
    if name == "nt-asgd":
        return ()
    if name == "sgd":
        return ("momentum_buffer",)
    # Only the groups of AdamW have its betas.
    return ("step", "exp_avg", "exp_avg_sq") if "betas" in group else ("momentum",)


def _groups(
    model: nn.Module, *, weight_decay: float, without: Sequence[Tensor] = ()
) -> list[dict[str, Any]]:
    left_out = {id(parameter) for parameter in without}
    kept = [p for p in model.parameters() if id(p) not in left_out]
    return [
        {"params": [p for p in kept if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in kept if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _adamw(groups: list[dict[str, Any]], beta2: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)


def newest_share(decay: float | None, steps: int) -> float:
    """What share of an average of the weights, `steps` steps after its start, the newest ones have.

    The plain mean, or exponential with `decay`, which is less while there are few to average.

    >>> newest_share(None, 1), newest_share(0.99, 1) == 1 - 2 / 11, round(newest_share(0.99, 9999), 9)
    (0.5, True, 0.01)
    """
    return 1 / (steps + 1) if decay is None else 1 - min(decay, (1 + steps) / (10 + steps))


def no_longer_falls(nats: float, before: Sequence[float]) -> bool:
    """When NT-ASGD begins to average (Merity, Keskar and Socher 2018, algorithm 1).

    `nats` is a validation's loss, worse than the best of those `before`, less the last PATIENT.

    >>> no_longer_falls(3.5, [4, 3, 5, 5, 5, 5]), no_longer_falls(3.5, [4, 3, 5, 5, 5, 5, 5])
    (False, True)
    """
    return len(before) > PATIENT and nats > min(before[:-PATIENT])
