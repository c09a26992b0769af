"""Step-by-step inference over N parallel streams: tokens in, next-token distributions out.

Selects the implementation: the C kernel if it supports the model, otherwise the model itself, which
supports any cell, softmax and device. Works on token ids, not text. The caller chooses the next token,
although the kernel can also sample it.

Shapes: N streams, V vocabulary, L layers, S states of the cell, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gru_lm.model.language_model import LanguageModel
from gru_lm.model.native.step import NativeStepper, suits


def make_stepper(model: LanguageModel, state_LSNH: Tensor) -> Stepper | NativeStepper:
    """Return the fastest stepper for this model, starting from state [L, S, N, H]."""
    return NativeStepper(model, state_LSNH) if suits(model) else Stepper(model, state_LSNH)


class Stepper:
    """Stepper for any model, starting from state [L, S, N, H]."""

    steps_at_once = 1

    def __init__(self, model: LanguageModel, state_LSNH: Tensor) -> None:
        self._model = model
        self._state_LSNH = state_LSNH

    @torch.inference_mode()
    def log_probs(self, tokens_N: np.ndarray) -> np.ndarray:
        """Feed one token per stream; return next-token log-probabilities [N, V] in nats, float64."""
        tokens_N1 = torch.from_numpy(tokens_N)[:, None].to(self._state_LSNH.device)
        log_probs_N1V, self._state_LSNH = self._model.log_probs(tokens_N1, self._state_LSNH)
        return log_probs_N1V[:, -1].double().cpu().numpy()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these streams, in this order."""
        self._state_LSNH = self._state_LSNH[:, :, list(rows)]

    @torch.inference_mode()
    def start(self, rows_M: np.ndarray, state_LSMH: Tensor) -> None:
        """Set the states of streams, of earlier ones or new ones after the last; M may be 1 there."""
        L, S, N, H = self._state_LSNH.shape
        more = max(0, int(rows_M.max()) + 1 - N)
        state_LSNH = torch.cat([self._state_LSNH, self._state_LSNH.new_zeros(L, S, more, H)], 2)
        state_LSNH[:, :, torch.from_numpy(rows_M)] = state_LSMH
        self._state_LSNH = state_LSNH
