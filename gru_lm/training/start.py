"""Set-up of training from a plan: the initial state, and the training steps.

The only place that assembles model, optimizer and the arguments of the training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.record_batches import RecordTokens, batches_of
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.loop import StepReport, TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule, make_optimizer
from gru_lm.training.plan import Plan
from gru_lm.training.state import restore_model

REHEARSAL_LR = 1e-4  # changes the weights, but not by much


def fresh_state(
    plan: Plan,
    config: ModelConfig,
    counts_V: Tensor,
    *,
    device: torch.device,
    backend: str,
    seed: int,
    source: Checkpoint | None = None,
) -> TrainState:
    """Build the state before the first step, with initial weights from `source`, if given.

    `counts_V` holds the token counts of the training text. Raises InputError if `source` is damaged.
    """
    torch.manual_seed(seed)
    initial = None
    if source:
        initial = restore_model(source, source.tensors(), device=device, backend=backend)
        initial.make_room_for(counts_V)
    model = LanguageModel(
        initial.config if initial else config,
        regularization=plan.regularization(),
        backend=backend,
    ).to(device)
    if initial:
        model.load_state_dict(initial.state_dict())
    else:
        model.set_unigram(counts_V)
    optimizer = make_optimizer(
        model,
        plan.optimizer,
        weight_decay=plan.weight_decay,
        beta2=plan.beta2,
        precision=plan.precision,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    return TrainState(model, optimizer, scaler, model.initial_state(plan.batch))


def planned_steps(
    state: TrainState,
    plan: Plan,
    tokens_N: np.ndarray | RecordTokens,
    *,
    budget: Budget,
    schedule: Schedule,
    clip: float,
    seed: int,
    clock: Callable[[], float],
    average_decay: float | None = None,
) -> Iterator[StepReport]:
    """Run `train_steps` for a plan on a training text."""
    return train_steps(
        state,
        batches_of(tokens_N, batch=plan.batch, bptt=plan.bptt, seed=seed),
        budget=budget,
        schedule=schedule,
        clip=clip,
        seed=seed,
        precision=plan.precision,
        clock=clock,
        average_decay=average_decay,
    )


def rehearsal_steps(
    state: TrainState,
    plan: Plan,
    tokens_N: np.ndarray | RecordTokens,
    *,
    clip: float = 1.0,
    seed: int = 0,
) -> Iterator[StepReport]:
    """Run training steps indefinitely at REHEARSAL_LR, to measure their speed."""
    return planned_steps(
        state,
        plan,
        tokens_N,
        budget=Budget(steps=None, seconds=None),
        schedule=Schedule(kind="constant", lr=REHEARSAL_LR, warmup=0.0),
        clip=clip,
        seed=seed,
        clock=lambda: 0.0,
    )
