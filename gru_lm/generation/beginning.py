"""The beginning of records: the states after a prompt, and the distribution of the first token.

Computed once for all records of a prompt. Depends on a model and a tokenizer.

Shapes: N draws, V vocabulary, L layers, S states of the cell, H hidden, K openings of the prompt, M
candidates for the first token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gru_lm.generation.border import weigh
from gru_lm.generation.choice import Choice
from gru_lm.generation.prompt import read_prompt
from gru_lm.generation.sampling import numbers
from gru_lm.generation.uniform import base_of
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.tokenizer import Tokenizer


class Beginning:
    """How records with one prompt begin. The end is no candidate where the prompt has no text.

    Attributes:
        base_1: what the random numbers of the prompt's draws start from.
        openings: ways to begin.
        clear_K: whether the tokens after an opening can be decoded by themselves.
        tokens_M, log_probs_M, opening_M: candidates for the first token, and the opening of each.
        seen_V: tokens subject to the repetition penalty; empty without one.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        text: str,
        *,
        choice: Choice,
        seed: tuple[int, int],
        never: Sequence[int],
        whole: dict[int, str],
        check: Callable[[], None],
    ) -> None:
        prompt = read_prompt(tokenizer, text)
        banned = never if prompt.tokens else [*never, tokenizer.end_id]
        border = weigh(model, tokenizer.newline_id, prompt.openings, never=banned, check=check)
        self.base_1 = base_of(*seed)
        self.openings = prompt.openings
        self.clear_K = [
            not each.rest and (not each.tokens or each.tokens[-1] in whole)
            for each in prompt.openings
        ]
        self._state_LSKH = border.state_LSKH
        self.tokens_M, self.opening_M = border.tokens_C, border.opening_C
        self.log_probs_M = border.log_probs_C
        penalised = choice.repetition_penalty != 1
        self.seen_V = np.zeros(tokenizer.vocab_size if penalised else 0, bool)
        if penalised:
            self.seen_V[list(prompt.tokens)] = True
        seen_1M = self.seen_V[None, self.tokens_M] if penalised else np.empty((1, 0), bool)
        filtered_M = choice.distribution(numbers(border.weights_C)[None], seen_1M)[0]
        self._best = int(filtered_M.argmax()) if choice.temperature == 0 else None
        self._cumulative_M = np.cumsum(np.exp(filtered_M))

    def choose(self, uniform_N: np.ndarray) -> np.ndarray:
        """A candidate for each number in [0, 1), [N]."""
        if self._best is not None:
            return np.full(len(uniform_N), self._best)
        total = self._cumulative_M[-1]
        # As in choice.draw: never past the last candidate of nonzero probability.
        threshold_N = np.minimum(uniform_N * total, np.nextafter(total, 0))
        found_N: np.ndarray = np.searchsorted(self._cumulative_M, threshold_N, side="right")
        return found_N

    def states(self, opening_N: np.ndarray) -> Tensor:
        """The state after each of these openings [L, S, N, H]; one for all if there is one opening."""
        if len(self.openings) == 1:
            return self._state_LSKH
        return self._state_LSKH[:, :, torch.from_numpy(opening_N)]
