"""Neural cache: raises the probability of a document's recent words that followed similar hidden states.

    p(w) = (1 − λ) p_model(w) + λ p_cache(w)
    p_cache(w) = Σ_i [x_i = w] exp(θ h·h_i) / Σ_i exp(θ h·h_i)    over the last `window` tokens x_i

h_i is the input of the softmax that predicted x_i, and h its current input (Grave, Joulin and Usunier
2017, "Improving Neural Language Models with a Continuous Cache"). Nothing is trained. Invariants: the
mixture sums to one; the cache is empty at the first token of a document, where the model is used alone;
the chunk size affects rounding only.

Shapes: T tokens of a chunk, K cached tokens followed by those of the chunk, H input of the softmax,
G thetas, W weights.
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
from gru_lm.signals import Stop, never, unheard

CHUNK = 512
SLICE = 1 << 22  # entries of one T x K score matrix: 16 MiB in float32, and there are a few copies
MOST_WINDOW = 1 << 17
# Grid searched by `tune_cache`. Thetas span a wide range because the norm of hidden states differs
# between models; θ = 0 is a unigram cache.
WINDOWS = (500, 2000, 8000)
THETAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
WEIGHTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
TUNE_TOKENS = 30_000  # of validation text, read once per window


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Cache size in tokens, θ and λ. Raises UsageError if a value is out of range."""

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
    progress: Callable[[np.ndarray], None] = unheard,
) -> Iterator[Portion]:
    """Score sequences as `score` does, but one at a time and with the neural cache.

    Costs window · H multiplications and 2 · window exponentials per token, in addition to the model.
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
    progress: Callable[[float], None] = unheard,
) -> Tuned[CacheSettings]:
    """Grid search over WINDOWS x THETAS x WEIGHTS on the first TUNE_TOKENS of validation sequences.

    Settings in `given` are fixed. One pass per window evaluates every theta and weight. `progress` is
    called with the fraction of the work done since its last call. Raises InputError if there are no
    tokens.
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
    """The last tokens of a document, each with the softmax input that predicted it."""

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
    """For each chunk: document number, tokens [T], and their log p [T, G, W] in float64."""
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
                mixed_TGW = _mix(of_model_T, of_cache_TG, weights).cpu().numpy()
            yield document, tokens_T, mixed_TGW


def _look_up(
    cache: _Cache, hidden_TH: Tensor, targets_T: Tensor, window: int, thetas: Sequence[float]
) -> tuple[Tensor, _Cache]:
    """log p_cache of the targets [T, G] in float64, NaN where the cache is empty; the updated cache."""
    T = len(targets_T)
    hidden_KH = torch.cat((cache.hidden_KH, hidden_TH))
    tokens_K = torch.cat((cache.tokens_K, targets_T))
    place_K = torch.arange(len(tokens_K), device=tokens_K.device)
    age_TK = place_K[-T:, None] - place_K
    unseen_TK = (age_TK < 1) | (age_TK > window)
    other_TK = unseen_TK | (tokens_K != targets_T[:, None])
    products_TK = hidden_TH @ hidden_KH.t()
    log_probs = []
    for theta in thetas:
        scores_TK = (theta * products_TK).masked_fill_(unseen_TK, -math.inf)
        total_T = scores_TK.logsumexp(1)
        log_probs.append(scores_TK.masked_fill_(other_TK, -math.inf).logsumexp(1) - total_T)
    return torch.stack(log_probs, 1).double(), _Cache(hidden_KH[-window:], tokens_K[-window:])


def _mix(of_model_T: Tensor, of_cache_TG: Tensor, weights: Sequence[float]) -> Tensor:
    """Log-probabilities of the mixtures [T, G, W]."""
    of_model_TG = of_model_T[:, None].expand_as(of_cache_TG)
    mixtures = []
    for weight in weights:
        log_weight = math.log(weight) if weight else -math.inf
        mixed_TG = torch.logaddexp(of_model_TG + math.log1p(-weight), of_cache_TG + log_weight)
        mixtures.append(torch.where(of_cache_TG.isnan(), of_model_TG, mixed_TG))
    return torch.stack(mixtures, 2)
