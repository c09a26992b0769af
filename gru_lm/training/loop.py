"""The training loop: a generator that yields after every optimizer step and does no I/O.

All state that must survive a crash is in `TrainState`. Everything else in a step is a pure function of
the step number: the batch, the dropout masks (the generator is reseeded from seed and step) and, given
the elapsed time, the learning rate. Invariant: a resumed run therefore reproduces an uninterrupted one.

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
from gru_lm.text.batches import Batch
from gru_lm.training.optimizers import Budget, Schedule, newest_share, stopped_improving

MIN_SCALE = 2.0**-14  # of the fp16 loss; overflows at a smaller scale are divergence
AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TrainState:
    """The complete training state: what a checkpoint saves and a resume restores."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # loss scaling under fp16; disabled otherwise
    hidden_LSBH: Tensor  # recurrent state carried between steps
    step: int = 0  # completed optimizer steps, and the position of the next batch
    tokens: int = 0  # training tokens seen
    leg_step: int = 0  # value of `step` when the current budget (leg) started
    seconds: float = 0.0  # elapsed time of the leg, over all its commands; saved under --minutes
    began: float = 0.0  # part of `seconds` before the leg's first step
    validated_step: int = -1  # step of the last validation
    validated_tenths: int = 0  # tenths of the budget used at the last validation
    best_step: int = -1
    best_nats: float = math.inf  # total loss on the validation text
    best_unknown_nats: float = 0.0  # part of `best_nats` on unknown tokens
    leg_nats: float = math.inf  # best loss of this leg, for early stopping
    since_best: int = 0  # validations since the leg's best
    average: dict[str, Tensor] | None = None  # averaged parameters by name, used for validation
    average_start: int = -1  # step at which averaging started
    validations: list[float] = field(default_factory=list)  # losses (nats) until NT-ASGD averages

    def start_leg(self) -> None:
        """Start a new budget at this step, with its own learning-rate schedule."""
        self.leg_step = self.step
        self.seconds, self.leg_nats = 0.0, math.inf
        self.validated_tenths = self.since_best = 0

    def validated(self, nats: float, unknown_nats: float) -> bool:
        """Record a validation loss for this step; return whether it is the best of all legs."""
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
        """Start averaging if NT-ASGD's criterion holds for a validation loss; return whether it does."""
        triggered = self.average is None and stopped_improving(nats, self.validations)
        if triggered:
            self.start_average()
        elif self.average is None:
            self.validations.append(nats)
        return triggered

    def start_average(self) -> None:
        """Start averaging the weights at this step."""
        named = self.model.named_parameters()
        self.average = {name: parameter.detach().clone() for name, parameter in named}
        self.average_start = self.step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Swap the averaged weights into the model, if any; restore the raw weights on exit."""
        if self.average is None:
            yield
            return
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        try:
            self._load(self.average)
            yield
        finally:
            self._load(weights)

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(values[name])

    @torch.no_grad()
    def average_in(self, decay: float | None) -> None:
        """Update the average, if any, with the current weights."""
        if self.average is not None:
            share = newest_share(decay, self.step - self.average_start)
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, share)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Metrics of one step; `loss` is in nats per token, `grad_norm` is before clipping."""

    step: int
    progress: float
    loss: float
    lr: float
    grad_norm: float
    seconds: float  # duration of the step


def train_steps(
    state: TrainState,
    batches: Callable[[int], Batch],
    *,
    budget: Budget,
    schedule: Schedule,
    clip: float,
    seed: int,
    precision: str,
    clock: Callable[[], float],
    average_decay: float | None = None,
) -> Iterator[StepReport]:
    """Train `state` in place, one optimizer step at a time, until the budget is used up.

    `clock` returns the elapsed seconds plus the time to reserve for work after the last step. If
    `state` has an average, each step updates it: exponentially with `average_decay`, as a plain mean
    without. Raises DivergedError if the loss or gradient is not finite, before the optimizer step: the
    state is then that of the previous step.
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
        starts_BT = None if batch.starts_BT is None else torch.from_numpy(batch.starts_BT)
        noise.manual_seed((seed * 0x9E3779B97F4A7C15 + state.step) % 2**63)
        with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "float32"):
            hidden_LSBH = state.hidden_LSBH * keep_B[:, None]
            nats, penalty, hidden_LSBH = model.loss(
                inputs_BT, targets_BT, hidden_LSBH, noise, starts_BT
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(nats + penalty))
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        loss_value, norm_value = torch.stack((nats.detach(), norm)).tolist()  # the step's only sync
        # Under fp16 the scaler handles overflowing gradients, by skipping the step.
        if not math.isfinite(loss_value if scaler.is_enabled() else loss_value + norm_value):
            raise DivergedError(
                f"step {state.step + 1}: loss {loss_value:g}, gradient norm {norm_value:g}"
            )
        if scaler.is_enabled() and scaler.get_scale() < MIN_SCALE:
            raise DivergedError(
                f"step {state.step + 1}: the fp16 gradient overflows at every loss scale"
            )
        lr = schedule(progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        scaler.step(optimizer)
        scaler.update()
        state.hidden_LSBH = hidden_LSBH.detach()
        state.step += 1
        state.tokens += batch.count
        state.average_in(average_decay)
        yield StepReport(
            step=state.step,
            progress=progress,
            loss=loss_value,
            lr=lr,
            grad_norm=norm_value,
            seconds=time.perf_counter() - started,
        )
