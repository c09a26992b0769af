"""Validation during training: the loss on held-out tokens, and how long it takes.

Running text is scored in parallel columns (scoring.py), a list exactly (record_scoring.py). Knows tokens
and a model, but no text and no runs.

Shapes: B rows, T time.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from gru_lm.evaluation.record_scoring import score_records
from gru_lm.evaluation.scoring import (
    COLUMN_BATCH,
    COLUMN_CHUNK,
    Totals,
    columns_read,
    validate,
)
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop
from gru_lm.text.record_batches import RecordTokens


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
    """Sums over all records."""
    device = next(model.parameters()).device
    nats = unknown_nats = torch.zeros((), dtype=torch.float64, device=device)
    unknown_tokens = 0
    for positions_BT, valid_BT, figures_BTX in score_records(model, records, stop=stop):
        log_probs_BT = figures_BTX[..., 0]  # 0 for padding
        # Sums stay on the device; reading them here would synchronise with the GPU on every pass.
        nats = nats - log_probs_BT.sum()
        if unknown_id is not None:
            unknown_BT = valid_BT & (records.tokens[positions_BT] == unknown_id)
            unknown_tokens += int(unknown_BT.sum())
            unknown = torch.from_numpy(unknown_BT).to(device)
            unknown_nats = unknown_nats - log_probs_BT.where(unknown, 0).sum()
    return Totals(len(records.tokens), float(nats), unknown_tokens, float(unknown_nats))
