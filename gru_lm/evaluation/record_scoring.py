"""Log-probabilities of the tokens of records, which are independent sequences.

Records are laid out in rows in which the state is reset where one begins, so that short ones cost no
padding and no work of their own. Knows tokens and a model, but no text. Invariant: every token is scored
once, given the tokens before it in its record; `batch` and `chunk` affect speed, and results by rounding
only.

Shapes: B rows, T time, N tokens, R records, X extra values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from gru_lm.evaluation.scoring import (
    COLUMN_BATCH,
    COLUMN_CHUNK,
    Columns,
    OfDistribution,
    forward,
)
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never, unheard
from gru_lm.text.record_batches import PADDING, RecordTokens, packed

ROW_TOKENS = 256  # of a row, on average, unless its records are longer
MOST_TOKENS = 1 << 22  # laid out at once


def score_records(
    model: LanguageModel,
    records: RecordTokens,
    *,
    batch: int = COLUMN_BATCH,
    chunk: int = COLUMN_CHUNK,
    of_distribution: OfDistribution | None = None,
    stop: Stop = never,
) -> Iterator[Columns]:
    """Score records in passes over at most `batch` rows and `chunk` steps; each token is in one pass."""
    starts_R, ends_R = records.spans(np.arange(len(records.ends)))
    lengths_R = (ends_R - starts_R).astype(np.int64)
    # Laid out with their positions for tokens; -1 is the input where a record begins.
    positions = RecordTokens(np.arange(len(records.tokens)), records.ends, -1)
    for numbers in _groups(lengths_R, batch):
        # Fewer rows than records of the longest one's length fill them all.
        fitting = int(lengths_R[numbers].sum() // lengths_R[numbers].max())
        before_BL, at_BL, starts_BL = packed(positions, numbers, min(batch, fitting), cut=False)
        inputs_BL, targets_BL = (
            np.where(each_BL < 0, instead, records.tokens[each_BL].astype(np.int64))
            for each_BL, instead in ((before_BL, records.first_id), (at_BL, PADDING))
        )
        state_LSBH = model.initial_state(len(at_BL))
        for begin in range(0, at_BL.shape[1], chunk):
            stop()
            inputs_BT, targets_BT, starts_BT, at_BT = (
                np.ascontiguousarray(each[:, begin : begin + chunk])
                for each in (inputs_BL, targets_BL, starts_BL, at_BL)
            )
            figures_BTX, state_LSBH = forward(
                model, inputs_BT, targets_BT, state_LSBH, of_distribution, starts_BT
            )
            yield Columns(at_BT, at_BT >= 0, figures_BTX)


def record_scores(
    model: LanguageModel,
    records: RecordTokens,
    *,
    batch: int = COLUMN_BATCH,
    chunk: int = COLUMN_CHUNK,
    of_distribution: OfDistribution | None = None,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> npt.NDArray[np.float64]:
    """The log-probability and the extra values of each token, [N, 1 + X].

    `progress` is called with the number of tokens of every pass.
    """
    scores_NX: npt.NDArray[np.float64] | None = None
    for positions_BT, valid_BT, figures_BTX in score_records(
        model, records, batch=batch, chunk=chunk, of_distribution=of_distribution, stop=stop
    ):
        if scores_NX is None:
            scores_NX = np.empty((len(records.tokens), figures_BTX.shape[2]))
        scores_NX[positions_BT[valid_BT]] = figures_BTX.cpu().numpy()[valid_BT]
        progress(int(valid_BT.sum()))
    assert scores_NX is not None, "no records"
    return scores_NX


def _groups(lengths_R: npt.NDArray[np.int64], batch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Records of similar length, shortest first, in groups that fill `batch` rows if they can."""
    order_R = np.argsort(lengths_R, kind="stable")
    upto_R = np.cumsum(lengths_R[order_R])
    begin, before = 0, 0
    while begin < len(order_R):
        full = int(np.searchsorted(upto_R, before + batch * ROW_TOKENS)) + 1
        most = int(np.searchsorted(upto_R, before + MOST_TOKENS, side="right"))
        end = max(begin + 1, min(max(full, begin + batch), most))
        yield order_R[begin:end]
        before, begin = int(upto_R[min(end, len(upto_R)) - 1]), end
