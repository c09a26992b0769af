"""Validation during training: the loss on held-out tokens, and how long it takes.

Running text is scored in parallel columns (scoring.py), a list exactly: its records are laid out in rows
in which the state is reset where a record begins. Knows tokens and a model, but no text and no runs.

Shapes: B rows, T time.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from gru_lm.evaluation.scoring import (
    COLUMN_BATCH,
    COLUMN_CHUNK,
    Totals,
    columns_read,
    validate,
)
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop
from gru_lm.text.record_batches import RecordTokens, packed

ROW_TOKENS = 256  # of the rows of a batch of records


def measure_tokens(
    model: LanguageModel,
    tokens: np.ndarray | RecordTokens,
    *,
    newline_id: int,
    unknown_id: int | None,
    stop: Stop,
) -> Totals:
    """Sums over held-out tokens."""
    if isinstance(tokens, RecordTokens):
        return _records(model, tokens, unknown_id=unknown_id, stop=stop)
    return validate(model, tokens, newline_id=newline_id, unknown_id=unknown_id, stop=stop)


def seconds_of(
    model: LanguageModel, tokens: np.ndarray | RecordTokens, *, newline_id: int, stop: Stop
) -> float:
    """Estimated seconds of `measure_tokens`, from the beginning of the tokens."""
    most, fastest = COLUMN_BATCH * COLUMN_CHUNK, math.inf
    if isinstance(tokens, RecordTokens):
        some = tokens.some(max(1, most * len(tokens.ends) // len(tokens.tokens)))
        share = len(tokens.tokens) / len(some.tokens)
    else:
        share = columns_read(len(tokens)) / len(tokens[:most])
    for _ in range(4):  # the first ones allocate memory and take up to six times as long
        started = time.monotonic()
        if isinstance(tokens, RecordTokens):
            _records(model, some, unknown_id=None, stop=stop)
        else:
            validate(model, tokens[:most], newline_id=newline_id, warm=0, stop=stop)
        fastest = min(fastest, time.monotonic() - started)
    return 1.2 * fastest * share  # in ten runs, a whole validation took 0.9 to 1.5 times as long


def _records(
    model: LanguageModel, records: RecordTokens, *, unknown_id: int | None, stop: Stop
) -> Totals:
    """Sums over all records; rows of a batch are filled with records of about equal length."""
    device = next(model.parameters()).device
    nats = unknown_nats = torch.zeros((), dtype=torch.float64, device=device)
    unknown_tokens = 0
    starts, ends = records.spans(np.arange(len(records.ends)))
    order = np.argsort(ends - starts, kind="stable")
    group = np.cumsum((ends - starts)[order]) // (COLUMN_BATCH * ROW_TOKENS)
    for numbers in np.split(order, np.flatnonzero(np.diff(group)) + 1):
        rows = min(COLUMN_BATCH, len(numbers))
        inputs_BL, targets_BL, starts_BL = packed(records, numbers, rows, cut=False)
        state_LSBH = model.initial_state(rows)
        for begin in range(0, inputs_BL.shape[1], COLUMN_CHUNK):
            stop()
            part = slice(begin, begin + COLUMN_CHUNK)
            targets_BT = targets_BL[:, part]
            log_probs_BT, state_LSBH = _scored(
                model, inputs_BL[:, part], targets_BT, state_LSBH, starts_BL[:, part]
            )
            nats = nats - log_probs_BT.sum()
            if unknown_id is not None:
                unknown_BT = torch.from_numpy(targets_BT == unknown_id).to(device)
                unknown_tokens += int(unknown_BT.sum())
                unknown_nats = unknown_nats - log_probs_BT.where(unknown_BT, 0).sum()
    return Totals(len(records.tokens), float(nats), unknown_tokens, float(unknown_nats))


@torch.inference_mode()
def _scored(
    model: LanguageModel,
    inputs_BT: np.ndarray,
    targets_BT: np.ndarray,
    state_LSBH: Tensor,
    starts_BT: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """log p of the targets [B, T] in float64, 0 for padding, and the new state."""
    inputs, targets, starts = (
        torch.from_numpy(np.ascontiguousarray(array)).to(state_LSBH.device)
        for array in (inputs_BT, targets_BT, starts_BT)
    )
    log_probs_BT, state_LSBH = model.target_log_probs(inputs, targets, state_LSBH, starts)
    return log_probs_BT.double(), state_LSBH
