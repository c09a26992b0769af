"""Dynamic evaluation: the weights follow the text (Krause, Kahembwe, Murray and Renals 2018).

A document is read in segments. Each is scored with the weights as they are; then they take one gradient
step on it, and go a part of the way back to the trained weights w₀:

    sgd    w ← w − η g + λ (w₀ − w)
    rms    w ← w − η g / (√MS + ε) + min(λ √MS / avg √MS, 1) (w₀ − w)

g is the gradient of the segment's mean nats, through its own steps alone; MS the mean of the squares of
such gradients over batches of training text; avg, as in the authors' program, of the tensors' means.
Knows no files. Invariants: no token's probability depends on itself or on what follows; nothing is
dropped; the model is left with the weights it came with, bit for bit, whatever happens in between.

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
from gru_lm.signals import Stop, never

METHODS = ("sgd", "rms")
# Gradients are dense, an embedding's too: a step reads or writes each parameter some twenty times,
# however long the segment. The paper's segments of 5 words would be four times the steps; its authors
# found 20 as good (their program's README: 50.5 on Penn Treebank by either).
SEGMENT = 20
# The batches of training text for MS: so many streams, each as long as a segment; and how many batches
# are enough. The best η and ε of `rms` depend on their size: the mean of more gradients is shorter.
STREAMS, BATCHES = 100, 200
# What `tune_dynamic` tries: η as long as a larger one is better, then at the best η every λ.
RATES = {
    "sgd": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    "rms": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
}
DECAYS = {"sgd": (0.0, 0.0003, 0.001, 0.003), "rms": (0.0, 0.0005, 0.002, 0.005)}
TUNE_TOKENS = 20_000  # of validation text, read once for each trial


@dataclass(frozen=True, kw_only=True)
class DynamicSettings:
    """Method, η, λ, tokens of a segment, and ε. Raises UsageError for a value out of its range."""

    method: str
    lr: float
    decay: float
    segment: int = SEGMENT
    # Of rms alone. By the authors' 2e-5 the rows of rare words run away where, as in a tied model here,
    # embeddings are scaled (2 x 384 on WikiText-2, at η 3e-5: it diverged, 2e-4 gained, 1e-3 more).
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method of dynamic evaluation", self.method, METHODS)
        check_range("the learning rate of dynamic evaluation", self.lr, 0, 1000)
        check_range("the decay of dynamic evaluation", self.decay, 0, 1)
        check_range("the segment of dynamic evaluation", self.segment, 1, 1 << 16)
        check_range("the epsilon of dynamic evaluation", self.epsilon, 1e-12, 1)


# Where nothing is tuned: the best few tried on 4,000 tokens of WikiText-2 by that model.
DEFAULTS = {
    "sgd": DynamicSettings(method="sgd", lr=0.03, decay=0.001),
    "rms": DynamicSettings(method="rms", lr=5e-5, decay=0.002),
}


def gradient_rms(
    model: LanguageModel,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    stop: Stop = never,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Tensor]:
    """√MS of every parameter, from batches of training text: inputs and targets [B, T], of one B.

    They follow each other in B streams, as in training, for the state is carried; best are BATCHES of
    STREAMS streams of a segment's length. `progress` hears of tokens. Raises InputError without any.
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
        raise InputError("the training text is too short to take gradients of")
    return [(square / count).sqrt_() for square in squares]


def score_dynamically(
    model: LanguageModel,
    sequences: Sequences,
    *,
    newline_id: int,
    settings: DynamicSettings,
    rms: Sequence[Tensor] | None = None,
    stop: Stop = never,
    progress: Callable[[np.ndarray], None] = lambda _: None,
) -> Generator[Portion, None, None]:
    """Score sequences as `score` does, one after the other, each by a model that learns from it.

    The state is carried through a document, which starts with the zero state and the trained weights.
    A segment is a portion. The method rms needs `rms`, from `gradient_rms`. The model is not the
    caller's while portions are read, but again when the generator ends or is closed.

    Time: a step takes about 40 ms of a core for 6 million parameters, and 200,000 tokens are 10,000
    steps of SEGMENT: 7 minutes. Memory: a copy of the weights and their gradients, for rms two copies
    more. `stop` is called before every segment, `progress` with its tokens. Raises DivergedError where
    a probability is no number any more.
    """
    with _borrowed(model) as (weights, trained):
        learn = _rule(settings, weights, trained, rms)
        for document, chunks in sequences:
            _put(weights, trained)
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
                        f"dynamic evaluation by {settings.method} left the finite numbers",
                        hint=f"a learning rate below {settings.lr:g}",
                    )
                learn(gradients)
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
    progress: Callable[[float], None] = lambda _: None,
) -> Tuned[DynamicSettings]:
    """`start` with the best learning rate and decay on the first TUNE_TOKENS of (validation) sequences.

    First RATES with the decay of `start`, until one is worse than the one before it; then DECAYS with
    the best of these. "lr" and "decay" stay as in `start` where they are `given`. A trial that leaves
    the finite numbers counts as infinite nats. `progress` hears of the share of the work done since
    it last did. Raises InputError where there are no tokens.
    """
    text, tokens = beginning(sequences, TUNE_TOKENS)
    rates = (start.lr,) if "lr" in given else RATES[start.method]
    usual = () if "decay" in given else DECAYS[start.method]
    decays = [decay for decay in usual if decay != start.decay]
    trials = len(rates) + len(decays)
    whole = tokens * trials

    def tried(settings: DynamicSettings) -> tuple[DynamicSettings, float]:
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

    found: list[tuple[DynamicSettings, float]] = []
    for lr in rates:
        found.append(tried(dataclasses.replace(start, lr=lr)))
        if len(found) > 1 and found[-1][1] > found[-2][1]:
            break
    progress((len(rates) - len(found)) / trials)
    best = Tuned.of(found, tokens).best
    found += [tried(dataclasses.replace(best, decay=decay)) for decay in decays]
    return Tuned.of(found, tokens)


class _Reading(NamedTuple):
    """What reading a batch gave: the gradients of its mean nats, and what its targets are scored by."""

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


def _rule(
    settings: DynamicSettings,
    weights: list[Tensor],
    trained: list[Tensor],
    rms: Sequence[Tensor] | None,
) -> Callable[[tuple[Tensor, ...]], None]:
    """What changes the weights by a segment's gradients."""
    if settings.method == "sgd":

        def learn(gradients: tuple[Tensor, ...]) -> None:
            with torch.no_grad():
                torch._foreach_lerp_(weights, trained, settings.decay)
                torch._foreach_add_(weights, gradients, alpha=-settings.lr)

        return learn

    assert rms is not None, "the method rms needs the gradients' size"
    average = torch.stack([size.mean() for size in rms]).mean()
    decays = [(settings.decay * size / average).clamp_(max=1) for size in rms]
    divisors = [size + settings.epsilon for size in rms]

    def learn_by_size(gradients: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(weights, trained, decays)
            torch._foreach_addcdiv_(weights, gradients, divisors, value=-settings.lr)

    return learn_by_size


@contextmanager
def _borrowed(model: LanguageModel) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The model's weights, to be changed, and as they are now; which they will be again."""
    weights: list[Tensor] = list(model.parameters())
    trained = [weight.detach().clone() for weight in weights]
    was_training = model.training
    model.train()  # cuDNN gives no gradient otherwise; what is dropped depends on noise alone
    try:
        yield weights, trained
    finally:
        _put(weights, trained)
        model.train(was_training)


@torch.no_grad()
def _put(weights: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(weights, values)
