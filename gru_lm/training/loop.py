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
from dataclasses import dataclass

import torch
from torch import Tensor

from gru_lm.errors import DivergedError
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.batches import Batches
from gru_lm.training.optimizers import Budget, Schedule

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
    seconds: float = 0.0  # since the command's start, summed over resumes; kept under --minutes
    validated_step: int = -1  # the step of the last validation
    validated_tenths: int = 0  # of the budget, when that was
    best_step: int = -1
    best_nats: float = math.inf  # over the held-out text, and thereof on unknown tokens
    best_unknown_nats: float = 0.0
    since_best: int = 0  # validations since


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did; `loss` is in nats a token, `grad_norm` before clipping."""

    step: int
    progress: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
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
) -> Iterator[StepReport]:
    """Train `state` in place, step by step, until the budget is used up.

    `clock` gives the seconds since the command's start, plus any time to be kept in reserve for what
    follows the last step. Raises DivergedError before the optimizer step where the loss or the
    gradient is not finite; the state is then still the one before the step.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    device = state.hidden_LSBH.device
    noise = torch.Generator(device)
    parameters = list(model.parameters())
    while (progress := budget.progress(state.step, clock())) < 1:
        started = time.perf_counter()
        batch = batches(state.step)
        inputs_BT, targets_BT, keep_B = (
            torch.from_numpy(array).to(device)
            for array in (batch.inputs_BT, batch.targets_BT, ~batch.reset_B)
        )
        noise.manual_seed((seed * 0x9E3779B97F4A7C15 + state.step) % 2**63)
        with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "float32"):
            hidden_LSBH = state.hidden_LSBH * keep_B[:, None]
            loss, hidden_LSBH = model.loss(inputs_BT, targets_BT, hidden_LSBH, noise)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        loss_value, norm_value = torch.stack((loss.detach(), norm)).tolist()  # the one wait a step
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
        yield StepReport(
            step=state.step,
            progress=progress,
            loss=loss_value,
            lr=lr,
            grad_norm=norm_value,
            tokens=targets_BT.numel(),
            seconds=time.perf_counter() - started,
        )
