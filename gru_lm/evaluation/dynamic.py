"""Dynamic evaluation: the weights adapt to the text (Krause, Kahembwe, Murray and Renals 2018).

A document is read in segments. Each segment is scored with the current weights, which then take one
gradient step on it and decay towards the trained weights w₀:

    sgd    w ← w − η g + λ (w₀ − w)
    rms    w ← w − η g / (√MS + ε) + min(λ √MS / avg √MS, 1) (w₀ − w)

g is the gradient of the segment's mean nats, truncated to the segment; MS is the mean square of such
gradients over batches of training text; avg, as in the authors' code, averages the means of the tensors.
Knows no files. Invariants: the probability of a token depends only on the tokens before it; dropout is
off; the trained weights are restored bit for bit, after errors too.

Shapes: B batch, T time, N tokens, H hidden, L layers, S states of a cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru_lm.errors import DivergedError, InputError, unknown_name
from gru_lm.evaluation.adaptation import Sequences, Tuned, beginning, check_range, segments
from gru_lm.evaluation.scoring import Portion, Tokens
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never, unheard

METHODS = ("sgd", "rms")
# Gradients are dense, those of embeddings too: a step reads or writes each parameter about twenty times,
# whatever the segment length. The paper uses segments of 5 words, which take four times as many steps;
# the README of the authors' code reports the same perplexity with 20 (50.5 on Penn Treebank).
SEGMENT = 20
# Batches of training text for MS: number of streams, each one segment long, and number of batches. The
# best η and ε of `rms` depend on the number of streams: a mean over more gradients has a smaller norm.
STREAMS, BATCHES = 100, 200
# Searched by `tune_dynamic`: increasing η until the loss rises, then every λ at the best η.
RATES = {
    "sgd": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    "rms": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
}
DECAYS = {"sgd": (0.0, 0.0003, 0.001, 0.003), "rms": (0.0, 0.0005, 0.002, 0.005)}
TUNE_TOKENS = 20_000  # of validation text, read once per trial


@dataclass(frozen=True, kw_only=True)
class DynamicSettings:
    """Method, η, λ, tokens per segment, and ε. Raises UsageError if a value is out of range."""

    method: str
    lr: float
    decay: float
    segment: int = SEGMENT
    # For rms only. With the authors' 2e-5 the embeddings of rare words diverge in tied models, whose
    # embeddings are scaled here (2 x 384, WikiText-2, η 3e-5: 2e-5 diverged, 2e-4 helped, 1e-3 more).
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method of dynamic evaluation", self.method, METHODS)
        check_range("the learning rate of dynamic evaluation", self.lr, 0, 1000)
        check_range("the decay of dynamic evaluation", self.decay, 0, 1)
        check_range("the segment of dynamic evaluation", self.segment, 1, 1 << 16)
        check_range("the epsilon of dynamic evaluation", self.epsilon, 1e-12, 1)


# Used without tuning: the best of a few settings tried with that model on 4,000 tokens of WikiText-2.
DEFAULTS = {
    "sgd": DynamicSettings(method="sgd", lr=0.03, decay=0.001),
    "rms": DynamicSettings(method="rms", lr=5e-5, decay=0.002),
}


def gradient_rms(
    model: LanguageModel,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> list[Tensor]:
    """√MS of every parameter, from batches of training text: inputs and targets [B, T], constant B.

    Batches continue B streams, as in training, because the state is carried over. Recommended: BATCHES
    batches of STREAMS streams, with T the segment length. `progress` is called with the tokens of each
    batch. Raises InputError if there are no batches.
    """
    state_LSBH, count = model.initial_state(0), 0
    with _borrowed(model) as (weights, _):
        squares = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
        for inputs_BT, targets_BT in batches:
            stop()
            if not count:
                state_LSBH = model.initial_state(len(inputs_BT))
            gradients, _, _, state_LSBH = _read(model, weights, inputs_BT, targets_BT, state_LSBH)
            torch._foreach_addcmul_(squares, gradients, gradients)
            count += 1
            progress(targets_BT.size)
    if not count:
        raise InputError("the training text is too short to compute gradients")
    return [(square / count).sqrt_() for square in squares]


def score_dynamically(
    model: LanguageModel,
    sequences: Sequences,
    *,
    newline_id: int,
    settings: DynamicSettings,
    rms: Sequence[Tensor] | None = None,
    stop: Stop = never,
    progress: Callable[[np.ndarray], None] = unheard,
) -> Generator[Portion, None, None]:
    """Score sequences as `score` does, but one at a time and with dynamic evaluation.

    Each document starts from the zero state and the trained weights. Every portion is one segment. The
    method rms needs `rms`, from `gradient_rms`. Do not use the model until the generator has ended or is
    closed: its weights change in the meantime.

    Time: a step takes about 40 ms on one core for 6 million parameters, so 200,000 tokens, which are
    10,000 steps of SEGMENT, take 7 minutes. Memory: a copy of the weights and of their gradients, and
    two more copies for rms. `stop` is called before every segment, `progress` with its tokens. Raises
    DivergedError if a log-probability is not finite.
    """
    with _borrowed(model) as (weights, trained):
        update = _update_rule(settings, weights, trained, rms)
        for document, chunks in sequences:
            _assign(weights, trained)
            state_LSBH = model.initial_state(1)
            for inputs_T, tokens_T in segments(
                chunks, size=settings.segment, newline_id=newline_id
            ):
                stop()
                gradients, hidden_TH, targets_T, state_LSBH = _read(
                    model, weights, inputs_T[None], tokens_T[None], state_LSBH
                )
                found_T = model.head.target_log_probs(hidden_TH, targets_T)
                log_probs_T = found_T.double().cpu().numpy()
                if not np.isfinite(log_probs_T).all():
                    raise DivergedError(
                        f"dynamic evaluation ({settings.method}) diverged: non-finite loss",
                        hint=f"use a learning rate below {settings.lr:g}",
                    )
                update(gradients)
                progress(tokens_T)
                yield Portion(document, tokens_T, log_probs_T, np.empty((len(tokens_T), 0)))


def tune_dynamic(
    model: LanguageModel,
    sequences: Sequences,
    *,
    newline_id: int,
    start: DynamicSettings,
    given: Collection[str] = (),
    rms: Sequence[Tensor] | None = None,
    stop: Stop = never,
    progress: Callable[[float], None] = unheard,
) -> Tuned[DynamicSettings]:
    """Tune learning rate and decay of `start` on the first TUNE_TOKENS of validation sequences.

    Tries RATES with the decay of `start` until one is worse than its predecessor, then DECAYS with the
    best rate. "lr" and "decay" are fixed if listed in `given`. A trial that diverges counts as infinite
    nats. `progress` is called with the fraction of the work done since its last call. Raises InputError
    if there are no tokens.
    """
    text, tokens = beginning(sequences, TUNE_TOKENS)
    rates = (start.lr,) if "lr" in given else RATES[start.method]
    grid = () if "decay" in given else DECAYS[start.method]
    decays = [decay for decay in grid if decay != start.decay]
    trials = len(rates) + len(decays)
    whole = tokens * trials

    def trial(settings: DynamicSettings) -> tuple[DynamicSettings, float]:
        nats, left = 0.0, tokens
        try:
            for portion in score_dynamically(
                model, text, newline_id=newline_id, settings=settings, rms=rms, stop=stop
            ):
                nats -= float(portion.log_probs_N.sum())
                left -= len(portion.tokens_N)
                progress(len(portion.tokens_N) / whole)
        except DivergedError:
            progress(left / whole)
            return settings, float("inf")
        return settings, nats / tokens

    tried: list[tuple[DynamicSettings, float]] = []
    for lr in rates:
        tried.append(trial(dataclasses.replace(start, lr=lr)))
        if len(tried) > 1 and tried[-1][1] > tried[-2][1]:
            break
    progress((len(rates) - len(tried)) / trials)
    best = Tuned.of(tried, tokens).best
    tried += [trial(dataclasses.replace(best, decay=decay)) for decay in decays]
    return Tuned.of(tried, tokens)


class _Reading(NamedTuple):
    """Result of a forward and backward pass: gradients of the mean nats, and inputs to score targets."""

    gradients: tuple[Tensor, ...]
    hidden_NH: Tensor
    targets_N: Tensor
    state_LSBH: Tensor


def _read(
    model: LanguageModel,
    weights: Sequence[Tensor],
    inputs_BT: Tokens,
    targets_BT: Tokens,
    state_LSBH: Tensor,
) -> _Reading:
    inputs, targets = (
        torch.from_numpy(np.array(array, np.int64)).to(state_LSBH.device)
        for array in (inputs_BT, targets_BT)
    )
    with torch.enable_grad():
        hidden_BTH, state_LSBH = model.hidden(inputs, state_LSBH)
        hidden_NH, targets_N = hidden_BTH.flatten(0, 1), targets.flatten()
        nats = model.head.loss(hidden_NH, targets_N)
    gradients = torch.autograd.grad(nats, weights, materialize_grads=True)
    return _Reading(gradients, hidden_NH.detach(), targets_N, state_LSBH.detach())


def _update_rule(
    settings: DynamicSettings,
    weights: list[Tensor],
    trained: list[Tensor],
    rms: Sequence[Tensor] | None,
) -> Callable[[tuple[Tensor, ...]], None]:
    """A function that updates the weights from the gradients of a segment."""
    if settings.method == "sgd":

        def update(gradients: tuple[Tensor, ...]) -> None:
            with torch.no_grad():
                torch._foreach_lerp_(weights, trained, settings.decay)
                torch._foreach_add_(weights, gradients, alpha=-settings.lr)

        return update

    assert rms is not None, "the method rms needs the RMS of the gradients"
    average = torch.stack([size.mean() for size in rms]).mean()
    decays = [(settings.decay * size / average).clamp_(max=1) for size in rms]
    divisors = [size + settings.epsilon for size in rms]

    def update_scaled(gradients: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(weights, trained, decays)
            torch._foreach_addcdiv_(weights, gradients, divisors, value=-settings.lr)

    return update_scaled


@contextmanager
def _borrowed(model: LanguageModel) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The weights of the model and a copy of them, restored on exit."""
    weights: list[Tensor] = list(model.parameters())
    trained = [weight.detach().clone() for weight in weights]
    was_training = model.training
    model.train()  # cuDNN needs it for gradients; dropout needs an explicit noise argument
    try:
        yield weights, trained
    finally:
        _assign(weights, trained)
        model.train(was_training)


@torch.no_grad()
def _assign(weights: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(weights, values)
