"""Text made of one token after another, many samples side by side.

Knows a model and a tokenizer; no terminal and no files. Invariants: sample i depends on the seed and
on i, not on how many samples run beside it (up to the rounding of a wider product), nor on how many
tokens are drawn at once; the text handed out is final.

Shapes: N samples, V vocabulary, T time, L layers, S states of the cell, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru_lm.errors import DivergedError
from gru_lm.generation.choice import Choice, normalise
from gru_lm.generation.writing import Writer, whole_pieces
from gru_lm.model.language_model import LanguageModel
from gru_lm.model.native.step import NativeStepper
from gru_lm.model.stepper import make_stepper
from gru_lm.text.tokenizer import Tokenizer

READ = 512  # tokens of a prompt read in one pass


@dataclass
class Sample:
    """One sampled text, without its prompt."""

    text: str = ""  # all of it, once it has ended
    tokens: int = 0  # sampled: those of a stop string and the end of the document included
    logprob: float = 0.0  # of those tokens, nats, under the model's unmodified distribution
    stop: str | None = None  # length | stop | end, once it is known


class Step(NamedTuple):
    """A sample went on by some tokens, or ended."""

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
    before every token, or every few where some are drawn at once, in a few milliseconds. Raises
    DivergedError where the model's probabilities are not numbers.
    """
    drawing = _Drawing(model, tokenizer, prompt, samples, choice or Choice(), seed, check)
    whole = whole_pieces(tokenizer)
    made = [Sample() for _ in range(samples)]
    texts: list[list[str]] = [[] for _ in made]
    writers = [
        Writer(tokenizer, whole, prompt, stop_strings=stop_strings, after_space=after_space)
        for _ in made
    ]

    def went_on(number: int, text: str, why: str | None) -> Step:
        texts[number].append(text)
        if why:
            made[number].stop, made[number].text = why, "".join(texts[number])
        return Step(number, text, made[number])

    running = list(range(samples))
    position = 0
    while position < length and running:
        check()
        tokens_NT, log_probs_NT = drawing.draw(length - position)
        drawn = tokens_NT.shape[1]
        position += drawn
        nats_N = log_probs_NT.sum(axis=1, dtype=np.float64).tolist()
        alive = []
        for row, (number, tokens) in enumerate(zip(running, tokens_NT.tolist(), strict=True)):
            text, used, why = writers[number].push(tokens)
            made[number].tokens += used
            made[number].logprob += (
                nats_N[row] if used == drawn else float(log_probs_NT[row, :used].sum(dtype=float))
            )
            if why is None:
                alive.append(row)
            yield went_on(number, text, why)
        if len(alive) < len(running):
            running = [running[row] for row in alive]
            drawing.keep(alive)
    # A character that the length cut in two is left out: its other bytes were never drawn.
    for number in running:
        yield went_on(number, writers[number].flush(), "length")


class _Drawing:
    """The tokens of all samples that still run."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        samples: int,
        choice: Choice,
        seed: int,
        check: Callable[[], None],
    ) -> None:
        read = [tokenizer.newline_id, *prompt]
        state_LSBH = _read(model, read[:-1], check).expand(-1, -1, samples, -1)
        self._stepper = make_stepper(model, state_LSBH)
        self._choice = choice
        self._never = tokenizer.unknown_id if tokenizer.lossless else None
        self._randoms = [np.random.default_rng((seed, number)) for number in range(samples)]
        self._last_N = np.full(samples, read[-1], np.int64)
        # What the penalty is for; without one, nothing is kept.
        penalised = choice.repetition_penalty != 1
        self._seen_NV = np.zeros((samples, model.config.vocab_size if penalised else 0), bool)
        if penalised:
            self._seen_NV[:, list(prompt)] = True

    def draw(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The next T tokens of each sample [N, T], T at most `most`, and their log-probabilities.

        In nats, under the model's unmodified distribution.
        """
        uniform_NT = np.zeros((len(self._randoms), min(most, self._stepper.steps_at_once)))
        if self._choice.temperature > 0:
            for uniform_T, random in zip(uniform_NT, self._randoms, strict=True):
                random.random(out=uniform_T)
        if isinstance(self._stepper, NativeStepper):
            tokens_NT, log_probs_NT = self._stepper.sample(
                self._last_N,
                uniform_NT,
                never=self._never,
                seen_NV=self._seen_NV,
                **vars(self._choice),
            )
        else:
            tokens_NT, log_probs_NT = self._choose(uniform_NT[:, 0])
        self._last_N = tokens_NT[:, -1]
        return tokens_NT, _numbers(log_probs_NT)

    def _choose(self, uniform_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One token of each sample [N, 1], by the filters, and its log-probability."""
        log_probs_NV = _numbers(self._stepper.log_probs(self._last_N))
        allowed_NV = log_probs_NV
        if self._never is not None:
            allowed_NV = log_probs_NV.copy()
            allowed_NV[:, self._never] = -np.inf
            allowed_NV = normalise(allowed_NV)
        tokens_N1 = self._choice.choose(allowed_NV, self._seen_NV, uniform_N)[:, None]
        if self._seen_NV.size:
            np.put_along_axis(self._seen_NV, tokens_N1, True, axis=1)
        return tokens_N1, np.take_along_axis(log_probs_NV, tokens_N1, axis=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the samples in these rows alone."""
        self._stepper.keep(rows)
        self._randoms = [self._randoms[row] for row in rows]
        self._last_N, self._seen_NV = self._last_N[rows], self._seen_NV[rows]


def _numbers(log_probs: np.ndarray) -> np.ndarray:
    """`log_probs`. Raises DivergedError where they are not numbers."""
    if np.isnan(log_probs).any():
        raise DivergedError("the model's probabilities are not numbers")
    return log_probs


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


def _read(model: LanguageModel, tokens: Sequence[int], check: Callable[[], None]) -> Tensor:
    """The state of one stream [L, S, 1, H] that has read `tokens` from the zero state."""
    state_LSBH = model.initial_state(1)
    tokens_1T = torch.tensor([tokens], dtype=torch.int64, device=state_LSBH.device)
    with torch.inference_mode():
        for start in range(0, len(tokens), READ):
            check()
            state_LSBH = model.hidden(tokens_1T[:, start : start + READ], state_LSBH)[1]
    return state_LSBH
