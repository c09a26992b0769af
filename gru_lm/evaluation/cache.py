"""The neural cache: words that a document used lately, where the model felt alike, become likelier.

    p(w) = (1 − λ) p_model(w) + λ p_cache(w)
    p_cache(w) = Σ_i [x_i = w] exp(θ h·h_i) / Σ_i exp(θ h·h_i)    over the last `window` tokens x_i

h_i is what the softmax read to predict x_i, and h what it reads now (Grave, Joulin and Usunier 2017,
"Improving Neural Language Models with a Continuous Cache"). Nothing is learned. Invariants: the mixture
sums to one; while the cache is empty, at a document's first token, it is the model alone; the chunk's
size changes nothing but rounding.

Shapes: T tokens of a chunk, K those remembered and then its own, H what the softmax reads, G thetas,
W weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru_lm.evaluation.adaptation import Sequences, Tuned, beginning, check_range, segments
from gru_lm.evaluation.scoring import Portion
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never

CHUNK = 512
SLICE = 1 << 22  # products of hidden states at once: 16 MiB in float32, a few times over
MOST_WINDOW = 1 << 17
# What `tune_cache` tries, every combination. Thetas are wide apart, for hidden states are of any length;
# 0 counts words alike wherever they were.
WINDOWS = (500, 2000, 8000)
THETAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
WEIGHTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
TUNE_TOKENS = 30_000  # of validation text; thrice, once a window


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Tokens remembered, θ, and λ. Raises UsageError for a value out of its range."""

    window: int = 2000
    theta: float = 0.1
    weight: float = 0.15

    def __post_init__(self) -> None:
        check_range("the cache's window", self.window, 1, MOST_WINDOW)
        check_range("the cache's theta", self.theta, 0, 1000)
        check_range("the cache's weight", self.weight, 0, 0.999)


def score_with_cache(
    model: LanguageModel,
    sequences: Sequences,
    *,
    newline_id: int,
    settings: CacheSettings,
    chunk: int = CHUNK,
    stop: Stop = never,
    progress: Callable[[np.ndarray], None] = lambda _: None,
) -> Iterator[Portion]:
    """Score sequences as `score` does, one after the other, under the mixture with the cache.

    Beside the model's own cost a token takes window · H multiplications and 2 · window exponentials.
    Memory does not grow with the text. `stop` is called before every chunk, `progress` with its tokens.
    """
    for document, tokens_T, log_probs_TGW in _mixtures(
        model,
        sequences,
        newline_id=newline_id,
        window=settings.window,
        thetas=[settings.theta],
        weights=[settings.weight],
        chunk=chunk,
        stop=stop,
    ):
        progress(tokens_T)
        yield Portion(document, tokens_T, log_probs_TGW[:, 0, 0], np.empty((len(tokens_T), 0)))


def tune_cache(
    model: LanguageModel,
    sequences: Sequences,
    *,
    newline_id: int,
    given: Mapping[str, float] = MappingProxyType({}),
    stop: Stop = never,
    progress: Callable[[float], None] = lambda _: None,
) -> Tuned[CacheSettings]:
    """The best of WINDOWS x THETAS x WEIGHTS on the first TUNE_TOKENS of (validation) sequences.

    What is `given` stays as it is. A pass over them for each window, which serves every theta and
    weight. `progress` hears of the share of the work done since it last did. Raises InputError where
    there are no tokens.
    """
    text, tokens = beginning(sequences, TUNE_TOKENS)
    windows = (int(given["window"]),) if "window" in given else WINDOWS
    thetas = (given["theta"],) if "theta" in given else THETAS
    weights = (given["weight"],) if "weight" in given else WEIGHTS
    tried: list[tuple[CacheSettings, float]] = []
    for window in windows:
        nats_GW = np.zeros((len(thetas), len(weights)))
        for _, tokens_T, log_probs_TGW in _mixtures(
            model,
            text,
            newline_id=newline_id,
            window=window,
            thetas=thetas,
            weights=weights,
            chunk=CHUNK,
            stop=stop,
        ):
            nats_GW -= log_probs_TGW.sum(0)
            progress(len(tokens_T) / (tokens * len(windows)))
        for theta, nats_W in zip(thetas, nats_GW.tolist(), strict=True):
            for weight, nats in zip(weights, nats_W, strict=True):
                settings = CacheSettings(window=window, theta=theta, weight=weight)
                tried.append((settings, nats / tokens))
    return Tuned.of(tried, tokens)


class _Cache(NamedTuple):
    """The last tokens of a document, each with what the softmax read to predict it."""

    hidden_KH: Tensor
    tokens_K: Tensor


def _mixtures(
    model: LanguageModel,
    sequences: Sequences,
    *,
    newline_id: int,
    window: int,
    thetas: Sequence[float],
    weights: Sequence[float],
    chunk: int,
    stop: Stop,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Chunk by chunk: the document, its tokens [T], and log p of each [T, G, W] in float64."""
    H = model.config.embed if model.config.tied else model.config.width
    size = max(1, min(chunk, SLICE // window))
    for document, chunks in sequences:
        state_LSBH = model.initial_state(1)
        device = state_LSBH.device
        empty_0 = torch.empty(0, dtype=torch.int64, device=device)
        cache = _Cache(state_LSBH.new_empty(0, H), empty_0)
        for inputs_T, tokens_T in segments(chunks, size=size, newline_id=newline_id):
            stop()
            with torch.inference_mode():
                inputs, targets = (
                    torch.from_numpy(array.astype(np.int64)).to(device)
                    for array in (inputs_T, tokens_T)
                )
                hidden_1TH, state_LSBH = model.hidden(inputs[None], state_LSBH)
                of_model_T = model.head.target_log_probs(hidden_1TH[0], targets).double()
                of_cache_TG, cache = _look_up(cache, hidden_1TH[0], targets, window, thetas)
                found_TGW = _mix(of_model_T, of_cache_TG, weights).cpu().numpy()
            yield document, tokens_T, found_TGW


def _look_up(
    cache: _Cache, hidden_TH: Tensor, targets_T: Tensor, window: int, thetas: Sequence[float]
) -> tuple[Tensor, _Cache]:
    """log p_cache of each target [T, G] in float64, NaN where the cache is empty; the cache after."""
    T = len(targets_T)
    hidden_KH = torch.cat((cache.hidden_KH, hidden_TH))
    tokens_K = torch.cat((cache.tokens_K, targets_T))
    place_K = torch.arange(len(tokens_K), device=tokens_K.device)
    age_TK = place_K[-T:, None] - place_K
    unseen_TK = (age_TK < 1) | (age_TK > window)
    other_TK = unseen_TK | (tokens_K != targets_T[:, None])
    products_TK = hidden_TH @ hidden_KH.t()
    found = []
    for theta in thetas:
        scores_TK = (theta * products_TK).masked_fill_(unseen_TK, -math.inf)
        all_T = scores_TK.logsumexp(1)
        found.append(scores_TK.masked_fill_(other_TK, -math.inf).logsumexp(1) - all_T)
    return torch.stack(found, 1).double(), _Cache(hidden_KH[-window:], tokens_K[-window:])


def _mix(of_model_T: Tensor, of_cache_TG: Tensor, weights: Sequence[float]) -> Tensor:
    """log of the mixtures [T, G, W]."""
    of_model_TG = of_model_T[:, None].expand_as(of_cache_TG)
    found = []
    for weight in weights:
        log_weight = math.log(weight) if weight else -math.inf
        mixed_TG = torch.logaddexp(of_model_TG + math.log1p(-weight), of_cache_TG + log_weight)
        found.append(torch.where(of_cache_TG.isnan(), of_model_TG, mixed_TG))
    return torch.stack(found, 2)
