"""Optimizers, learning-rate schedules and weight averaging.

The learning rate is a pure function of progress, which runs from 0 to 1 over the budget (steps or time),
so the schedule always ends with the budget. Independent of batches and files.
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

WARMUP_START = 0.01  # learning rate at the start of the warm-up, relative to the peak
MOMENTUM = 0.95  # of Muon
# Upper limit on Muon's weight decay: values that suit the other parameters may be too large for it.
MAX_MUON_DECAY = 0.1
PERIOD = 4  # Muon updates each matrix once per PERIOD steps; with 8, a single update is too large
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
WINDOW = 5  # latest validations that NT-ASGD's criterion ignores


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Training budget in steps, seconds, or both (whichever ends first).

    `began` is the part of the seconds spent before the first step, which does not count as progress.
    """

    steps: int | None
    seconds: float | None
    began: float = 0.0

    def progress(self, step: int, seconds: float) -> float:
        """Return the used share of the budget, 0 to 1.

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
    """Learning-rate schedule: linear warm-up over the share `warmup`, then decay of the given kind.

    Kinds: "cosine" and "linear" reach 0 at the end of the budget; "constant" stays at `lr`.
    """

    kind: str
    lr: float
    warmup: float

    def __call__(self, progress: float) -> float:
        """Return the learning rate at `progress` in [0, 1].

        >>> [round(Schedule(kind="linear", lr=1.0, warmup=0.5)(p), 2) for p in (0, 0.25, 0.5, 1)]
        [0.01, 0.5, 1.0, 0.0]
        """
        if progress < self.warmup:
            return self.lr * max(WARMUP_START, progress / self.warmup)
        left = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 1.0
        if self.kind == "cosine":
            return self.lr * (1 - math.cos(math.pi * left)) / 2
        return self.lr * left if self.kind == "linear" else self.lr


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the cells' weights with square gate blocks; AdamW for the rest.

    Muon orthogonalizes the Nesterov momentum of each gate's [H, H] block, so all directions of the state
    change at the same rate: lr · √H / 4, about the size of an AdamW update at `lr`. Orthogonalization
    takes three Newton-Schulz iterations with the Polar Express coefficients (Amsel et al. 2025), in
    bfloat16 if the run is. As momentum changes little between steps, matrices are updated in rotation:
    each once per PERIOD steps, with PERIOD times the learning rate. Their weight decay is capped at
    MAX_MUON_DECAY.
    """

    def __init__(
        self, model: LanguageModel, *, weight_decay: float, beta2: float, precision: str
    ) -> None:
        cells = [cell for cell in model.recurrent.layers if isinstance(cell, Cell)]
        every = [cell.weight_hh_l0 for cell in cells] + [cell.weight_ih_l0 for cell in cells]
        H = cells[0].weight_hh_l0.shape[1]
        matrices = [matrix for matrix in every if matrix.shape[1] == H]
        self._adamw = _adamw(_groups(model, weight_decay=weight_decay, without=matrices), beta2)
        decay = min(weight_decay, MAX_MUON_DECAY)
        super().__init__(matrices, {"lr": 0.0, "weight_decay": decay})
        self.param_groups += self._adamw.param_groups
        self._adamw.state = self.state
        self._gates = len(cells[0].gates)
        self._steps = 0  # total steps of the run, known after the first step in this process
        self._dtype = torch.bfloat16 if precision == "bf16" else matrices[0].dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Perform one optimization step; closures are not supported."""
        assert closure is None, "closures are not supported"
        self._adamw.step()
        group = self.param_groups[0]
        matrices: list[Tensor] = group["params"]
        H = matrices[0].shape[1]
        # AdamW's step count is in the checkpoint; reading it on CUDA synchronizes, so only once.
        counted = self._adamw.param_groups[0]["params"][0]
        self._steps = self._steps + 1 if self._steps else int(self.state[counted]["step"])
        due, nesterov = [], []
        for number, matrix in enumerate(matrices):
            assert matrix.grad is not None
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            if (number + self._steps) % PERIOD == 0:
                due.append(matrix)
                nesterov.append(matrix.grad.lerp(momentum, MOMENTUM))
        if not due:
            return
        update = orthogonal(torch.cat(nesterov).view(-1, H, H).to(self._dtype)).to(due[0])
        lr = PERIOD * group["lr"] * H**0.5 / 4
        for matrix, change in zip(due, torch.split(update, self._gates), strict=True):
            matrix.mul_(1 - lr * group["weight_decay"]).sub_(change.reshape_as(matrix), alpha=lr)


def orthogonal(x_nHH: Tensor) -> Tensor:
    """Approximate nearest orthogonal matrices [n, H, H]; most singular values are within 0.4 to 1.9."""
    dtype = torch.promote_types(x_nHH.dtype, torch.float32)
    norm_n11 = torch.linalg.vector_norm(x_nHH, dim=(1, 2), keepdim=True, dtype=dtype)
    x_nHH = x_nHH / norm_n11.clamp(min=1e-7).to(x_nHH.dtype)
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

    The training loop sets the learning rate at every step and averages the weights. Weight decay applies
    to matrices only, not to biases, whose initial values are meaningful.
    """
    if name == "muon":
        return Muon(model, weight_decay=weight_decay, beta2=beta2, precision=precision)
    groups = _groups(model, weight_decay=weight_decay)
    if name == "adamw":
        return _adamw(groups, beta2)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9 if name == "sgd" else 0.0)


def slots_at_most(name: str) -> int:
    """Upper bound on extra numbers stored per weight: optimizer state, or NT-ASGD's average."""
    return 2 if name in ("adamw", "muon") else 1


def slots(name: str, group: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the state entries per parameter of an optimizer's group, after the first step."""
    if name == "nt-asgd":
        return ()
    if name == "sgd":
        return ("momentum_buffer",)
    # In Muon, only AdamW's groups have betas.
    return ("step", "exp_avg", "exp_avg_sq") if "betas" in group else ("momentum",)


def _groups(
    model: nn.Module, *, weight_decay: float, without: Sequence[Tensor] = ()
) -> list[dict[str, Any]]:
    excluded = {id(parameter) for parameter in without}
    parameters = [p for p in model.parameters() if id(p) not in excluded]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _adamw(groups: list[dict[str, Any]], beta2: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)


def newest_share(decay: float | None, steps: int) -> float:
    """Weight of the newest parameters in an average, `steps` steps after its start.

    A plain mean if `decay` is None, otherwise exponential, with smaller decay over the first steps.

    >>> newest_share(None, 1), newest_share(0.99, 1) == 1 - 2 / 11, round(newest_share(0.99, 9999), 9)
    (0.5, True, 0.01)
    """
    return 1 / (steps + 1) if decay is None else 1 - min(decay, (1 + steps) / (10 + steps))


def stopped_improving(nats: float, before: Sequence[float]) -> bool:
    """NT-ASGD's criterion to start averaging (Merity, Keskar and Socher 2018, algorithm 1).

    True if the validation loss `nats` is worse than the best one `before`, ignoring the last WINDOW.

    >>> stopped_improving(3.5, [4, 3, 5, 5, 5, 5]), stopped_improving(3.5, [4, 3, 5, 5, 5, 5, 5])
    (False, True)
    """
    return len(before) > WINDOW and nats > min(before[:-WINDOW])
