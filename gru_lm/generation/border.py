"""Distribution of the first token after a prompt, marginalised over the prompt's encodings.

Each candidate is weighted by the model's probability of an opening of the prompt (prompt.py) times that
of the token after it. Depends on a model and token ids; text and random numbers are handled elsewhere.

Shapes: T time, V vocabulary, L layers, S states of the cell, H hidden, K openings, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from gru_lm.generation.choice import normalise
from gru_lm.generation.prompt import Opening
from gru_lm.model.language_model import LanguageModel

READ = 512  # prompt tokens per forward pass


@dataclass(frozen=True)
class Border:
    """Candidates for the first token, each following one of the openings."""

    openings: Sequence[Opening]
    state_LSKH: Tensor  # after each opening
    tokens_C: np.ndarray
    opening_C: np.ndarray  # index of the candidate's opening
    log_probs_C: np.ndarray  # given its opening, under the model's unmodified distribution
    weights_C: np.ndarray  # joint log-probability with its opening, normalised over candidates


def weigh(
    model: LanguageModel,
    newline_id: int,
    openings: Sequence[Opening],
    *,
    never: Sequence[int],
    check: Callable[[], None],
) -> Border:
    """Compute the candidates after `openings`, excluding the tokens in `never`."""
    streams = [(newline_id, *opening.tokens) for opening in openings]
    common = len([*takewhile(lambda each: len({*each}) == 1, zip(*streams, strict=False))])
    state_LSBH = read(model, streams[0][: common - 1], check)
    states, tokens, numbers, log_probs, weights = [], [], [], [], []
    for number, (opening, stream) in enumerate(zip(openings, streams, strict=True)):
        check()
        *before, last = stream[common - 1 :]
        nats, after = 0.0, state_LSBH
        with torch.inference_mode():
            if before:
                inputs, targets = _row(before, after), _row([*before[1:], last], after)
                log_probs_1T, after = model.target_log_probs(inputs, targets, after)
                nats = float(log_probs_1T.double().sum())
            log_probs_11V, after = model.log_probs(_row([last], after), after)
        log_probs_V = log_probs_11V[0, 0].double().cpu().numpy()
        following = opening.following
        if following is None:
            following = np.arange(len(log_probs_V))
        following = np.setdiff1d(following, never)
        states.append(after)
        tokens.append(following)
        numbers.append(np.full(len(following), number))
        log_probs.append(log_probs_V[following])
        weights.append(nats + log_probs_V[following])
    return Border(
        openings=openings,
        state_LSKH=torch.cat(states, dim=2),
        tokens_C=np.concatenate(tokens),
        opening_C=np.concatenate(numbers),
        log_probs_C=np.concatenate(log_probs),
        weights_C=normalise(np.concatenate(weights)[None])[0],
    )


def read(model: LanguageModel, tokens: Sequence[int], check: Callable[[], None]) -> Tensor:
    """State of one stream [L, S, 1, H] after reading `tokens` from the zero state."""
    state_LSBH = model.initial_state(1)
    with torch.inference_mode():
        for start in range(0, len(tokens), READ):
            check()
            row_1T = _row(tokens[start : start + READ], state_LSBH)
            state_LSBH = model.hidden(row_1T, state_LSBH)[1]
    return state_LSBH


def _row(tokens: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([tokens], dtype=torch.int64, device=like.device)
