"""Choosing the next token, and text made of one token after another.

Knows a model and a tokenizer; no terminal and no files. Invariants: sample i depends on the seed and
on i, not on how many samples run beside it (up to the rounding of a wider product); the text handed
out is final: bytes that do not yet make a character, and text that may be the beginning of a stop
string, are held back.

Shapes: N samples, V vocabulary, T time, L layers, S states of the cell, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru_lm.errors import DivergedError, UsageError
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.tokenizer import Tokenizer

READ = 512  # tokens of a prompt read in one pass


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the next token is chosen. The defaults are the model's own distribution.

    Applied in this order: repetition penalty, temperature, top-k, top-p, min-p, typical; each sees
    what the one before it left, renormalised. Raises UsageError where a value makes no sense.
    """

    temperature: float = 1.0  # 0 is greedy: the most probable token, whatever the filters say
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed, fine in (
            ("temperature", "0 or more", 0 <= self.temperature < float("inf")),
            ("top-k", "0 (off) or more", self.top_k >= 0),
            ("top-p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min-p", "from 0 to 1", 0 <= self.min_p <= 1),
            ("typical", "above 0 and at most 1", 0 < self.typical <= 1),
            ("repetition-penalty", "above 0", 0 < self.repetition_penalty < float("inf")),
        ):
            if not fine:
                value = getattr(self, name.replace("-", "_"))
                raise UsageError(f"--{name} {value} is out of range", hint=f"it is {allowed}")

    def distribution(self, log_probs_NV: np.ndarray, seen_NV: np.ndarray) -> np.ndarray:
        """The log-probabilities that are drawn from; `seen_NV` marks what the penalty is for."""
        if self.repetition_penalty != 1:
            log_probs_NV = penalise_repetition(log_probs_NV, seen_NV, self.repetition_penalty)
        if self.temperature not in (0, 1):
            log_probs_NV = apply_temperature(log_probs_NV, self.temperature)
        if self.top_k:
            log_probs_NV = keep_top_k(log_probs_NV, self.top_k)
        if self.top_p < 1:
            log_probs_NV = keep_top_p(log_probs_NV, self.top_p)
        if self.min_p:
            log_probs_NV = keep_min_p(log_probs_NV, self.min_p)
        if self.typical < 1:
            log_probs_NV = keep_typical(log_probs_NV, self.typical)
        return log_probs_NV


def normalise(log_probs_NV: np.ndarray) -> np.ndarray:
    """Shift each row so that its probabilities sum to one."""
    shifted_NV: np.ndarray = log_probs_NV - log_probs_NV.max(axis=1, keepdims=True)
    shifted_NV -= np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True))
    return shifted_NV


def _keep(log_probs_NV: np.ndarray, kept_NV: np.ndarray) -> np.ndarray:
    return normalise(np.where(kept_NV, log_probs_NV, -np.inf))


def _first_of_mass(probs_NV: np.ndarray, order_NV: np.ndarray, mass: float) -> np.ndarray:
    """Marks the fewest tokens, taken in the given order, whose probabilities reach `mass`."""
    sorted_NV = np.take_along_axis(probs_NV, order_NV, axis=1)
    before_NV = np.cumsum(sorted_NV, axis=1) - sorted_NV
    kept_NV = np.empty(probs_NV.shape, bool)
    np.put_along_axis(kept_NV, order_NV, before_NV < mass, axis=1)
    return kept_NV


def penalise_repetition(
    log_probs_NV: np.ndarray, seen_NV: np.ndarray, penalty: float
) -> np.ndarray:
    """Raise the probability of each token seen before to the power of `penalty`; renormalise.

    Keskar et al. 2019 (CTRL), section 4.1, on log-probabilities: on raw scores the effect would
    depend on a constant that the softmax ignores.
    """
    return normalise(np.where(seen_NV, log_probs_NV * penalty, log_probs_NV))


def apply_temperature(log_probs_NV: np.ndarray, temperature: float) -> np.ndarray:
    """Raise every probability to the power of 1 / temperature; renormalise."""
    # Shifted first, so that a tiny temperature overflows to -inf and never to NaN.
    shifted_NV = log_probs_NV - log_probs_NV.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        return normalise(shifted_NV / temperature)


def keep_top_k(log_probs_NV: np.ndarray, k: int) -> np.ndarray:
    """Keep the k most probable tokens and what ties with the last of them (Fan et al. 2018)."""
    V = log_probs_NV.shape[1]
    if k >= V:
        return log_probs_NV
    least_N1 = np.partition(log_probs_NV, V - k, axis=1)[:, V - k, None]
    return _keep(log_probs_NV, log_probs_NV >= least_N1)


def keep_top_p(log_probs_NV: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest most probable tokens that hold mass p (nucleus: Holtzman et al. 2020)."""
    order_NV = np.argsort(-log_probs_NV, axis=1, kind="stable")
    return _keep(log_probs_NV, _first_of_mass(np.exp(log_probs_NV), order_NV, p))


def keep_min_p(log_probs_NV: np.ndarray, p: float) -> np.ndarray:
    """Keep tokens at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    least_N1 = log_probs_NV.max(axis=1, keepdims=True) + np.log(p)
    return _keep(log_probs_NV, log_probs_NV >= least_N1)


def keep_typical(log_probs_NV: np.ndarray, mass: float) -> np.ndarray:
    """Keep the fewest tokens of that mass whose surprisal is nearest to the entropy.

    Locally typical sampling: Meister et al. 2023.
    """
    probs_NV = np.exp(log_probs_NV)
    finite_NV = np.where(probs_NV > 0, log_probs_NV, 0)
    entropy_N1 = -(probs_NV * finite_NV).sum(axis=1, keepdims=True)
    order_NV = np.argsort(np.abs(-log_probs_NV - entropy_N1), axis=1, kind="stable")
    return _keep(log_probs_NV, _first_of_mass(probs_NV, order_NV, mass))


def draw(log_probs_NV: np.ndarray, uniform_N: Sequence[float]) -> list[int]:
    """The token in each row at which the cumulative probability first exceeds u in [0, 1)."""
    cumulative_NV = np.cumsum(np.exp(log_probs_NV), axis=1)
    tokens = []
    for cumulative_V, u in zip(cumulative_NV, uniform_N, strict=True):
        total = cumulative_V[-1]
        # u * total may round up to the total, beyond the last token that has any probability.
        threshold = min(u * total, np.nextafter(total, 0))
        tokens.append(int(np.searchsorted(cumulative_V, threshold, side="right")))
    return tokens


class StopStrings:
    """Lets text pass up to the first stop string, holding back what may be the start of one.

    >>> stops = StopStrings(["END"])
    >>> stops.push("one E"), stops.push("N"), stops.push("D two")
    (('one ', False), ('', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be shown of all the text so far, and whether a stop string has come."""
        if not self._stops:
            return text, False
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = next(
            (
                size
                for size in range(min(len(held), max(map(len, self._stops)) - 1), 0, -1)
                if any(stop.startswith(held[-size:]) for stop in self._stops)
            ),
            0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """What is held back, now that no more text comes."""
        rest, self._held = self._held, ""
        return rest


@dataclass
class Sample:
    """One sampled text, without its prompt; grows while it is made."""

    text: str = ""
    tokens: int = 0  # sampled: those of a stop string and the end of the document included
    logprob: float = 0.0  # of those tokens, nats, under the model's unmodified distribution
    stop: str | None = None  # length | stop | end, once it is known


class Step(NamedTuple):
    """A sample went on by a token, or ended."""

    number: int
    text: str  # new, final text; often none
    sample: Sample


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Sequence[int] = (),
    *,
    samples: int = 1,
    length: int = 500,
    choice: Choice | None = None,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    after_space: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Sample texts that go on after the prompt's tokens, side by side; yields text as it is made.

    Each sample's last step has `sample.stop` set: "length" after `length` tokens, "end" where the
    end of a document was drawn, "stop" where its text came to hold a stop string; the text then
    ends before that string. Stop strings are looked for in the new text alone. A lossless
    tokenizer's unknown token is never drawn. `after_space` says that the prompt's text ended in a
    space that its tokens do not hold, so that the text begins without one. `check` is called
    before every token. Raises DivergedError where the model's probabilities are not numbers.
    """
    choice = choice or Choice()
    never = tokenizer.unknown_id if tokenizer.lossless else None
    end = tokenizer.end_id if tokenizer.end_id != tokenizer.newline_id else None
    made = [Sample() for _ in range(samples)]
    decoders = [tokenizer.decoder() for _ in made]
    filters = [StopStrings(stop_strings) for _ in made]
    randoms = [np.random.default_rng((seed, number)) for number in range(samples)]
    running = list(range(samples))
    tokens: list[int] = []

    def finish(number: int, text: str, why: str) -> Step:
        made[number].text += text
        made[number].stop = why
        return Step(number, text, made[number])

    log_probs_1V, state_LSBH = _read(model, [tokenizer.newline_id, *prompt], check)
    log_probs_NV = log_probs_1V.repeat(samples, axis=0)
    state_LSBH = state_LSBH.expand(-1, -1, samples, -1)
    seen_NV = np.zeros(log_probs_NV.shape, bool)
    seen_NV[:, list(prompt)] = True
    for token in prompt:  # so that each decoder knows where in a line it is
        for decoder in decoders:
            decoder.push(token)

    for position in range(length):
        check()
        if position:
            log_probs_NV, state_LSBH = _forward(model, np.array(tokens)[:, None], state_LSBH)
        allowed_NV = log_probs_NV
        if never is not None:
            allowed_NV = log_probs_NV.copy()
            allowed_NV[:, never] = -np.inf
        chosen_NV = choice.distribution(allowed_NV, seen_NV)
        if choice.temperature == 0:
            tokens = [int(token) for token in chosen_NV.argmax(axis=1)]
        else:
            tokens = draw(chosen_NV, [randoms[number].random() for number in running])

        alive = []
        for row, (number, token) in enumerate(zip(running, tokens, strict=True)):
            sample = made[number]
            sample.tokens += 1
            sample.logprob += float(log_probs_NV[row, token])
            seen_NV[row, token] = True
            text = decoders[number].push(token)
            if after_space and not position:
                text = text.removeprefix(" ")
            text, stopped = filters[number].push(text)
            if token == end and not stopped:
                # Bytes still held back can no longer become a character.
                last, stopped = filters[number].push(decoders[number].flush())
                text += last
                if not stopped:
                    yield finish(number, text + filters[number].flush(), "end")
                    continue
            if stopped:
                yield finish(number, text, "stop")
                continue
            sample.text += text
            alive.append(row)
            yield Step(number, text, sample)
        if len(alive) < len(running):
            running = [running[row] for row in alive]
            tokens = [tokens[row] for row in alive]
            state_LSBH, seen_NV = state_LSBH[:, :, alive], seen_NV[alive]
            if not running:
                return
    # A character that the length cut in two is left out: its other bytes were never drawn.
    for number in running:
        yield finish(number, filters[number].flush(), "length")


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Sequence[int] = (),
    *,
    samples: int = 1,
    **options: Any,
) -> list[Sample]:
    """The finished samples of `generate`, whose options these are, in order."""
    steps = generate(model, tokenizer, prompt, samples=samples, **options)
    made = {step.number: step.sample for step in steps}
    return [made[number] for number in range(samples)]


def _read(
    model: LanguageModel, tokens: Sequence[int], check: Callable[[], None]
) -> tuple[np.ndarray, Tensor]:
    """The distribution after reading `tokens` from the zero state [1, V], and the state."""
    state_LSBH = model.initial_state(1)
    before_1T = np.array([tokens[:-1]], np.int64)
    for start in range(0, before_1T.shape[1], READ):
        check()
        with torch.inference_mode():
            inputs = torch.from_numpy(before_1T[:, start : start + READ]).to(state_LSBH.device)
            state_LSBH = model.hidden(inputs, state_LSBH)[1]
    return _forward(model, np.array([tokens[-1:]], np.int64), state_LSBH)


def _forward(
    model: LanguageModel, tokens_N1: np.ndarray, state_LSBH: Tensor
) -> tuple[np.ndarray, Tensor]:
    """log p of every next token [N, V] in float64, and the state after."""
    with torch.inference_mode():
        tokens = torch.from_numpy(tokens_N1).to(state_LSBH.device)
        log_probs_N1V, state_LSBH = model.log_probs(tokens, state_LSBH)
        log_probs_NV = log_probs_N1V[:, -1].double().cpu().numpy()
    if np.isnan(log_probs_NV).any():
        raise DivergedError("the model's probabilities are not numbers")
    return log_probs_NV, state_LSBH
