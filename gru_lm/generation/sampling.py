"""Autoregressive sampling of several texts in parallel.

Depends on a model and a tokenizer, not on terminals or files. Invariants: sample i depends on the seed
and on i, not on the number of parallel samples (up to rounding in larger matrix products) or of tokens
drawn per call; text is yielded only once it is final.

Shapes: N samples, V vocabulary, T time, L layers, S states of the cell, H hidden, K openings
of the prompt, C candidates for the first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from gru_lm.errors import DivergedError
from gru_lm.generation.border import Border, read, weigh
from gru_lm.generation.choice import Choice, normalise
from gru_lm.generation.prompt import Prompt, read_prompt
from gru_lm.generation.writing import Writer, whole_pieces
from gru_lm.model.language_model import LanguageModel
from gru_lm.model.native.step import NativeStepper
from gru_lm.model.stepper import Stepper, make_stepper
from gru_lm.text.tokenizer import Tokenizer


@dataclass
class Sample:
    """One sampled text, without its prompt."""

    text: str = ""  # complete text, set at the end
    tokens: int = 0  # sampled tokens, including those of a stop string and the end of the document
    logprob: float = 0.0  # of those tokens, in nats, under the model's unmodified distribution
    stop: str | None = None  # reason of the end: length | stop | end
    # Id, piece and log-probability of each sampled token, if requested.
    logprobs: list[tuple[int, str, float]] = field(default_factory=list)


class Step(NamedTuple):
    """Progress of one sample: it was extended by some tokens, or ended."""

    number: int
    text: str  # new, final text; may be empty
    sample: Sample


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt | None = None,
    *,
    samples: int = 1,
    first: int = 0,
    length: int = 500,
    choice: Choice | None = None,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    allow_unknown: bool = False,
    with_logprobs: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Sample continuations of the prompt in parallel; yield text as it is generated.

    The last step of each sample has `sample.stop` set: "length" after `length` tokens, "end" if the end
    of a document was drawn, "stop" if the text contains a stop string; the text then ends before that
    string. Stop strings are searched for in the new text only. The first token may start inside the
    prompt; it is drawn from all tokens that continue the prompt's text. Tokens without text are never
    drawn; the unknown token is drawn only with `allow_unknown` and a lossy tokenizer. The random numbers
    are those of the samples from number `first` on. `check` is called every few milliseconds: before
    every token, or before every block of tokens drawn at once. Raises
    DivergedError if the model's probabilities are NaN.
    """
    prompt = prompt or read_prompt(tokenizer, "")
    never = never_drawn(tokenizer, allow_unknown=allow_unknown)
    numbered = range(first, first + samples)
    drawing = _Drawing(
        model, tokenizer.newline_id, prompt, numbered, choice or Choice(), seed, never, check
    )
    whole = whole_pieces(tokenizer)
    results = [Sample() for _ in range(samples)]
    texts: list[list[str]] = [[] for _ in results]
    writers: list[Writer] = []

    def extended(number: int, text: str, why: str | None) -> Step:
        texts[number].append(text)
        if why:
            results[number].stop, results[number].text = why, "".join(texts[number])
        return Step(number, text, results[number])

    running = list(range(samples))
    position = 0
    while position < length and running:
        check()
        tokens_NT, log_probs_NT = drawing.draw(length - position)
        if not writers:
            writers = [
                Writer(tokenizer, whole, each, stop_strings=stop_strings)
                for each in drawing.openings
            ]
        drawn = tokens_NT.shape[1]
        position += drawn
        nats_N = log_probs_NT.sum(axis=1, dtype=np.float64).tolist()
        alive = []
        for row, (number, tokens) in enumerate(zip(running, tokens_NT.tolist(), strict=True)):
            text, used, why = writers[number].push(tokens)
            results[number].tokens += used
            results[number].logprob += (
                nats_N[row] if used == drawn else float(log_probs_NT[row, :used].sum(dtype=float))
            )
            if with_logprobs:
                nats = log_probs_NT[row].tolist()
                results[number].logprobs += [
                    (token, tokenizer.piece(token), nats[at])
                    for at, token in enumerate(tokens[:used])
                ]
            if why is None:
                alive.append(row)
            yield extended(number, text, why)
        if len(alive) < len(running):
            running = [running[row] for row in alive]
            drawing.keep(alive)
    # An incomplete character at the length limit is dropped.
    for number in running:
        yield extended(number, writers[number].flush() if writers else "", "length")


def never_drawn(tokenizer: Tokenizer, *, allow_unknown: bool) -> list[int]:
    """The tokens excluded from sampling.

    The unknown token, and tokens without text such as <s> of a foreign model; the end of a document is
    allowed if the model was trained on it.
    """
    excluded = {token for token in range(tokenizer.vocab_size) if not tokenizer.surface(token)}
    if tokenizer.ends_documents:
        excluded.discard(tokenizer.end_id)
    if tokenizer.unknown_id is not None and (tokenizer.lossless or not allow_unknown):
        excluded.add(tokenizer.unknown_id)
    return sorted(excluded)


class _Drawing:
    """State of the active samples, from which their next tokens are drawn."""

    def __init__(
        self,
        model: LanguageModel,
        newline_id: int,
        prompt: Prompt,
        numbered: range,
        choice: Choice,
        seed: int,
        never: Sequence[int],
        check: Callable[[], None],
    ) -> None:
        self._model = model
        self._choice = choice
        self._never = never
        samples = len(numbered)
        self._randoms = [np.random.default_rng((seed, number)) for number in numbered]
        self.openings = [prompt.openings[0]] * samples
        # Tokens subject to the repetition penalty; empty without a penalty.
        penalised = choice.repetition_penalty != 1
        self._seen_NV = np.zeros((samples, model.config.vocab_size if penalised else 0), bool)
        if penalised:
            self._seen_NV[:, list(prompt.tokens)] = True
        self._border: Border | None = None
        if prompt.is_plain():
            *before, last = newline_id, *prompt.tokens
            self._start(read(model, before, check).expand(-1, -1, samples, -1))
            self._last_N = np.full(samples, last, np.int64)
        else:
            self._border = weigh(model, newline_id, prompt.openings, never=never, check=check)

    def _start(self, state_LSNH: Tensor) -> None:
        self._stepper = make_stepper(self._model, state_LSNH)

    def draw(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the next T ≤ `most` tokens of each sample: tokens [N, T] and log-probabilities [N, T].

        Log-probabilities are in nats, under the model's unmodified distribution.
        """
        if self._border:
            return self._first(self._border)
        uniform_NT = self._uniform(min(most, self._stepper.steps_at_once))
        tokens_NT, log_probs_NT = next_tokens(
            self._stepper,
            self._choice,
            self._last_N,
            uniform_NT,
            never=self._never,
            seen_NV=self._seen_NV,
        )
        self._last_N = tokens_NT[:, -1]
        return tokens_NT, log_probs_NT

    def _uniform(self, steps: int) -> np.ndarray:
        """Uniform random numbers [N, T] from each sample's generator; zeros if sampling is greedy."""
        uniform_NT = np.zeros((len(self._randoms), steps))
        if self._choice.temperature > 0:
            for uniform_T, random in zip(uniform_NT, self._randoms, strict=True):
                random.random(out=uniform_T)
        return uniform_NT

    def _first(self, border: Border) -> tuple[np.ndarray, np.ndarray]:
        """Draw the first token of each sample [N, 1] from the border's candidates."""
        self._border = None
        N, C = len(self._randoms), len(border.tokens_C)
        seen_NC = self._seen_NV[:, border.tokens_C] if self._seen_NV.size else np.empty((N, 0))
        weights_NC = np.broadcast_to(numbers(border.weights_C), (N, C))
        at_N = self._choice.choose(weights_NC, seen_NC, self._uniform(1)[:, 0])
        opening_N = border.opening_C[at_N]
        self.openings = [border.openings[number] for number in opening_N]
        self._start(border.state_LSKH[:, :, opening_N])
        self._last_N = border.tokens_C[at_N]
        mark(self._seen_NV, self._last_N[:, None])
        return self._last_N[:, None], border.log_probs_C[at_N, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only the samples in these rows, in this order."""
        self._stepper.keep(rows)
        self._randoms = [self._randoms[row] for row in rows]
        self._last_N, self._seen_NV = self._last_N[rows], self._seen_NV[rows]


def next_tokens(
    stepper: Stepper | NativeStepper,
    choice: Choice,
    last_N: np.ndarray,
    uniform_NT: np.ndarray,
    *,
    never: Sequence[int],
    seen_NV: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Feed a token per stream and draw the next T ≤ `stepper.steps_at_once`, never one of `never`.

    Returns the tokens and their unmodified log-probabilities [N, T], and marks the tokens in `seen_NV`,
    unless it is empty. Raises DivergedError if the probabilities are NaN.
    """
    if isinstance(stepper, NativeStepper):
        tokens_NT, log_probs_NT = stepper.sample(
            last_N, uniform_NT, never=never, seen_NV=seen_NV, **vars(choice)
        )
        return tokens_NT, numbers(log_probs_NT)
    log_probs_NV = numbers(stepper.log_probs(last_N))
    allowed_NV = log_probs_NV
    if len(never):
        allowed_NV = log_probs_NV.copy()
        allowed_NV[:, never] = -np.inf
        allowed_NV = normalise(allowed_NV)
    tokens_N1 = choice.choose(allowed_NV, seen_NV, uniform_NT[:, 0])[:, None]
    mark(seen_NV, tokens_N1)
    return tokens_N1, np.take_along_axis(log_probs_NV, tokens_N1, axis=1)


def mark(seen_NV: np.ndarray, tokens_N1: np.ndarray) -> None:
    """Mark the tokens in `seen_NV`, unless it is empty."""
    if seen_NV.size:
        np.put_along_axis(seen_NV, tokens_N1, True, axis=1)


def numbers(log_probs: np.ndarray) -> np.ndarray:
    """Return `log_probs`. Raises DivergedError if they contain NaN."""
    if np.isnan(log_probs).any():
        raise DivergedError("the model's probabilities are not numbers")
    return log_probs


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt | None = None,
    *,
    samples: int = 1,
    **options: Any,
) -> list[Sample]:
    """Run `generate` with these options to the end; return the finished samples in order."""
    steps = generate(model, tokenizer, prompt, samples=samples, **options)
    finished = {step.number: step.sample for step in steps}
    return [finished[number] for number in range(samples)]
