"""A language model one step at a time, N streams side by side: tokens in, distributions out.

Picks what does the arithmetic: the C kernel where it can run the model, else the model itself, whatever
its cells, softmax and device. Knows token ids, but no text; how the next one is chosen is another's
business, though the kernel can do that too.

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
    """The fastest stepper that there is for this model, from a state [L, S, N, H] on."""
    return NativeStepper(model, state_LSNH) if suits(model) else Stepper(model, state_LSNH)


class Stepper:
    """Any model, from a state [L, S, N, H] on."""

    steps_at_once = 1

    def __init__(self, model: LanguageModel, state_LSNH: Tensor) -> None:
        self._model = model
        self._state_LSNH = state_LSNH

    @torch.inference_mode()
    def log_probs(self, tokens_N: np.ndarray) -> np.ndarray:
        """Read a token in each stream; log p of every next one [N, V], float64, in nats."""
        tokens_N1 = torch.from_numpy(tokens_N)[:, None].to(self._state_LSNH.device)
        log_probs_N1V, self._state_LSNH = self._model.log_probs(tokens_N1, self._state_LSNH)
        return log_probs_N1V[:, -1].double().cpu().numpy()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these streams alone, in this order."""
        self._state_LSNH = self._state_LSNH[:, :, list(rows)]
