"""The first token after a prompt: one of all that continue its text, however the prompt is encoded.

Weighs the openings of a prompt (prompt.py) by the model's probabilities: of the tokens of each opening,
and of each token that may follow it. Knows token ids and a model; no text and no chance.

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

READ = 512  # tokens of a prompt read in one pass


@dataclass(frozen=True)
class Border:
    """The candidates for the first token, each after one of the openings."""

    openings: Sequence[Opening]
    state_LSKH: Tensor  # after each opening
    tokens_C: np.ndarray
    opening_C: np.ndarray  # the number of its opening
    log_probs_C: np.ndarray  # after its opening, under the model's unmodified distribution
    weights_C: np.ndarray  # the same with the opening's own, normalised over all candidates


def weigh(
    model: LanguageModel,
    newline_id: int,
    openings: Sequence[Opening],
    *,
    never: Sequence[int],
    check: Callable[[], None],
) -> Border:
    """The candidates after `openings`, but for the tokens in `never`."""
    streams = [(newline_id, *opening.tokens) for opening in openings]
    alike = len([*takewhile(lambda each: len({*each}) == 1, zip(*streams, strict=False))])
    state_LSBH = read(model, streams[0][: alike - 1], check)
    states, tokens, numbers, log_probs, weights = [], [], [], [], []
    for number, (opening, stream) in enumerate(zip(openings, streams, strict=True)):
        check()
        *before, last = stream[alike - 1 :]
        nats, after = 0.0, state_LSBH
        with torch.inference_mode():
            if before:
                inputs, targets = _row(before, after), _row([*before[1:], last], after)
                found, after = model.target_log_probs(inputs, targets, after)
                nats = float(found.double().sum())
            found, after = model.log_probs(_row([last], after), after)
        log_probs_V = found[0, 0].double().cpu().numpy()
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
    """The state of one stream [L, S, 1, H] that has read `tokens` from the zero state."""
    state_LSBH = model.initial_state(1)
    with torch.inference_mode():
        for start in range(0, len(tokens), READ):
            check()
            row_1T = _row(tokens[start : start + READ], state_LSBH)
            state_LSBH = model.hidden(row_1T, state_LSBH)[1]
    return state_LSBH


def _row(tokens: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([tokens], dtype=torch.int64, device=like.device)
