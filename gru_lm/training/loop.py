"""The training loop: a generator, one optimizer step a turn. It computes; it writes and prints nothing.

Everything that must survive a crash is in `TrainState`. The rest of a step is a pure function of the
step's number: its batch, its dropout noise (the generator is seeded anew from seed and step) and,
given the elapsed time, its learning rate. That is why a resumed run repeats an uninterrupted one.

Shapes: B batch, T time, H hidden, L layers, S states of a cell.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gru_lm.errors import DivergedError
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.batches import Batches
from gru_lm.training.optimizers import Budget, Schedule, newest_share, no_longer_falls

LEAST_SCALE = 2.0**-14  # of the loss under fp16; below it, it is not the scale that overflows
AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TrainState:
    """All that a checkpoint holds and a resume restores."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss under fp16; does nothing otherwise
    hidden_LSBH: Tensor  # the carried state of every stream
    step: int = 0  # optimizer steps done, and so the next batch's position
    tokens: int = 0  # training tokens seen
    leg_step: int = 0  # the step after which the present budget, a leg, began
    seconds: float = 0.0  # of the leg's commands since their starts; kept under --minutes
    began: float = 0.0  # of these, those before the leg's first step
    validated_step: int = -1  # the step of the last validation
    validated_tenths: int = 0  # of the budget, when that was
    best_step: int = -1
    best_nats: float = math.inf  # over the held-out text, and thereof on unknown tokens
    best_unknown_nats: float = 0.0
    leg_nats: float = math.inf  # the leg's own best, which patience looks at
    since_best: int = 0  # validations of the leg since that
    average: dict[str, Tensor] | None = None  # of each parameter, by name: what is validated
    average_start: int = -1  # the step whose weights were its first
    validations: list[float] = field(default_factory=list)  # nats, until NT-ASGD averages

    def start_leg(self) -> None:
        """Have another budget begin here, with a rise and a fall of the learning rate of its own."""
        self.leg_step = self.step
        self.seconds, self.leg_nats = 0.0, math.inf
        self.validated_tenths = self.since_best = 0

    def validated(self, nats: float, unknown_nats: float) -> bool:
        """Account for a validation of this step's model; whether it is the best of all legs."""
        self.validated_step = self.step
        self.since_best += 1
        if nats < self.leg_nats:
            self.leg_nats, self.since_best = nats, 0
        if nats >= self.best_nats:
            return False
        self.best_step = self.step
        self.best_nats, self.best_unknown_nats = nats, unknown_nats
        return True

    def begins_to_average(self, nats: float) -> bool:
        """Average the weights from these on, where NT-ASGD's rule says so of a validation; whether."""
        begins = self.average is None and no_longer_falls(nats, self.validations)
        if begins:
            self.start_average()
        elif self.average is None:
            self.validations.append(nats)
        return begins

    def start_average(self) -> None:
        """Average the weights from these on."""
        named = self.model.named_parameters()
        self.average = {name: parameter.detach().clone() for name, parameter in named}
        self.average_start = self.step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averages in the model, where there are any; then the weights again."""
        if self.average is None:
            yield
            return
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(weights)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(values[name])

    @torch.no_grad()
    def average_in(self, decay: float | None) -> None:
        """Take the weights of a step that was just made into the average."""
        if self.average is not None:
            share = newest_share(decay, self.step - self.average_start)
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, share)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did; `loss` is in nats a token, `grad_norm` before clipping."""

    step: int
    progress: float
    loss: float
    lr: float
    grad_norm: float
    seconds: float  # that the step took


def train_steps(
    state: TrainState,
    batches: Batches,
    *,
    budget: Budget,
    schedule: Schedule,
    clip: float,
    seed: int,
    precision: str,
    clock: Callable[[], float],
    average_decay: float | None = None,
) -> Iterator[StepReport]:
    """Train `state` in place, step by step, until the budget is used up.

    `clock` gives the seconds since the command's start, plus any time to be kept in reserve for what
    follows the last step. Where `state` has an average it goes on: exponential with `average_decay`, the
    plain mean without. Raises DivergedError before the optimizer step where the loss or the
    gradient is not finite; the state is then still the one before the step.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    device = state.hidden_LSBH.device
    noise = torch.Generator(device)
    parameters = list(model.parameters())
    while (progress := budget.progress(state.step - state.leg_step, clock())) < 1:
        started = time.perf_counter()
        batch = batches(state.step)
        inputs_BT, targets_BT, keep_B = (
            torch.from_numpy(array).to(device)
            for array in (batch.inputs_BT, batch.targets_BT, ~batch.reset_B)
        )
        noise.manual_seed((seed * 0x9E3779B97F4A7C15 + state.step) % 2**63)
        with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "float32"):
            hidden_LSBH = state.hidden_LSBH * keep_B[:, None]
            nats, penalty, hidden_LSBH = model.loss(inputs_BT, targets_BT, hidden_LSBH, noise)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(nats + penalty))
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        loss_value, norm_value = torch.stack((nats.detach(), norm)).tolist()  # the one wait a step
        # Under fp16 a gradient that overflows is the scaler's business: it skips the step.
        if not math.isfinite(loss_value if scaler.is_enabled() else loss_value + norm_value):
            raise DivergedError(
                f"step {state.step + 1}: loss {loss_value:g}, gradient norm {norm_value:g}"
            )
        if scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE:
            raise DivergedError(f"step {state.step + 1}: the gradient overflows at every scale")
        lr = schedule(progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        scaler.step(optimizer)
        scaler.update()
        state.hidden_LSBH = hidden_LSBH.detach()
        state.step += 1
        state.tokens += targets_BT.numel()
        state.average_in(average_decay)
        yield StepReport(
            step=state.step,
            progress=progress,
            loss=loss_value,
            lr=lr,
            grad_norm=norm_value,
            seconds=time.perf_counter() - started,
        )
