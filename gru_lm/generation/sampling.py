"""Text made of one token after another, many samples side by side.

Knows a model and a tokenizer; no terminal and no files. Invariants: sample i depends on the seed and
on i, not on how many samples run beside it (up to the rounding of a wider product), nor on how many
tokens are drawn at once; the text handed out is final.

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
from gru_lm.model.stepper import make_stepper
from gru_lm.text.tokenizer import Tokenizer


@dataclass
class Sample:
    """One sampled text, without its prompt."""

    text: str = ""  # all of it, once it has ended
    tokens: int = 0  # sampled: those of a stop string and the end of the document included
    logprob: float = 0.0  # of those tokens, nats, under the model's unmodified distribution
    stop: str | None = None  # length | stop | end, once it is known
    # Of each sampled token its id, piece and logprob, where they are asked for.
    logprobs: list[tuple[int, str, float]] = field(default_factory=list)


class Step(NamedTuple):
    """A sample went on by some tokens, or ended."""

    number: int
    text: str  # new, final text; often none
    sample: Sample


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt | None = None,
    *,
    samples: int = 1,
    length: int = 500,
    choice: Choice | None = None,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    allow_unknown: bool = False,
    with_logprobs: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Sample texts that continue the prompt, side by side; yields text as it is made.

    Each sample's last step has `sample.stop` set: "length" after `length` tokens, "end" where the
    end of a document was drawn, "stop" where its text came to hold a stop string; the text then
    ends before that string. Stop strings are looked for in the new text alone. The first token may
    begin in the prompt, and is drawn from all that continue its text. Tokens that stand for no text
    are never drawn, nor is the unknown one unless a tokenizer that needs it has `allow_unknown`.
    `check` is called before every token, or every few where some are drawn at once, in a few
    milliseconds. Raises DivergedError where the model's probabilities are not numbers.
    """
    prompt = prompt or read_prompt(tokenizer, "")
    never = _never(tokenizer, allow_unknown=allow_unknown)
    drawing = _Drawing(
        model, tokenizer.newline_id, prompt, samples, choice or Choice(), seed, never, check
    )
    whole = whole_pieces(tokenizer)
    made = [Sample() for _ in range(samples)]
    texts: list[list[str]] = [[] for _ in made]
    writers: list[Writer] = []

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
        if not writers:
            writers = [
                Writer(tokenizer, whole, each.tokens, stop_strings=stop_strings, rest=each.rest)
                for each in drawing.openings
            ]
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
            if with_logprobs:
                nats = log_probs_NT[row].tolist()
                made[number].logprobs += [
                    (token, tokenizer.piece(token), nats[at])
                    for at, token in enumerate(tokens[:used])
                ]
            if why is None:
                alive.append(row)
            yield went_on(number, text, why)
        if len(alive) < len(running):
            running = [running[row] for row in alive]
            drawing.keep(alive)
    # A character that the length cut in two is left out: its other bytes were never drawn.
    for number in running:
        yield went_on(number, writers[number].flush() if writers else "", "length")


def _never(tokenizer: Tokenizer, *, allow_unknown: bool) -> list[int]:
    """The tokens that are not drawn.

    The unknown one; and those without text, such as a foreign model's <s>, but for the end of a document
    where training has met it.
    """
    mute = {token for token in range(tokenizer.vocab_size) if not tokenizer.surface(token)}
    if tokenizer.ends_documents:
        mute.discard(tokenizer.end_id)
    if tokenizer.unknown_id is not None and (tokenizer.lossless or not allow_unknown):
        mute.add(tokenizer.unknown_id)
    return sorted(mute)


class _Drawing:
    """The tokens of all samples that still run."""

    def __init__(
        self,
        model: LanguageModel,
        newline_id: int,
        prompt: Prompt,
        samples: int,
        choice: Choice,
        seed: int,
        never: Sequence[int],
        check: Callable[[], None],
    ) -> None:
        self._model = model
        self._choice = choice
        self._never = never
        self._randoms = [np.random.default_rng((seed, number)) for number in range(samples)]
        self.openings = [prompt.openings[0]] * samples
        # What the penalty is for; without one, nothing is kept.
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
        """The next T tokens of each sample [N, T], T at most `most`, and their log-probabilities.

        In nats, under the model's unmodified distribution.
        """
        if self._border:
            return self._first(self._border)
        uniform_NT = self._uniform(min(most, self._stepper.steps_at_once))
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

    def _uniform(self, steps: int) -> np.ndarray:
        """Chance [N, T] for so many steps: of each sample its own, and none where it plays no part."""
        uniform_NT = np.zeros((len(self._randoms), steps))
        if self._choice.temperature > 0:
            for uniform_T, random in zip(uniform_NT, self._randoms, strict=True):
                random.random(out=uniform_T)
        return uniform_NT

    def _first(self, border: Border) -> tuple[np.ndarray, np.ndarray]:
        """A token of each sample [N, 1] that crosses the border, and its log-probability."""
        self._border = None
        N, C = len(self._randoms), len(border.tokens_C)
        seen_NC = self._seen_NV[:, border.tokens_C] if self._seen_NV.size else np.empty((N, 0))
        weights_NC = np.broadcast_to(_numbers(border.weights_C), (N, C))
        at_N = self._choice.choose(weights_NC, seen_NC, self._uniform(1)[:, 0])
        opening_N = border.opening_C[at_N]
        self.openings = [border.openings[number] for number in opening_N]
        self._start(border.state_LSKH[:, :, opening_N])
        self._last_N = border.tokens_C[at_N]
        self._mark(self._last_N[:, None])
        return self._last_N[:, None], border.log_probs_C[at_N, None]

    def _choose(self, uniform_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One token of each sample [N, 1], by the filters, and its log-probability."""
        log_probs_NV = _numbers(self._stepper.log_probs(self._last_N))
        allowed_NV = log_probs_NV
        if self._never:
            allowed_NV = log_probs_NV.copy()
            allowed_NV[:, self._never] = -np.inf
            allowed_NV = normalise(allowed_NV)
        tokens_N1 = self._choice.choose(allowed_NV, self._seen_NV, uniform_N)[:, None]
        self._mark(tokens_N1)
        return tokens_N1, np.take_along_axis(log_probs_NV, tokens_N1, axis=1)

    def _mark(self, tokens_N1: np.ndarray) -> None:
        if self._seen_NV.size:
            np.put_along_axis(self._seen_NV, tokens_N1, True, axis=1)

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
    prompt: Prompt | None = None,
    *,
    samples: int = 1,
    **options: Any,
) -> list[Sample]:
    """The finished samples of `generate`, whose options these are, in order."""
    steps = generate(model, tokenizer, prompt, samples=samples, **options)
    made = {step.number: step.sample for step in steps}
    return [made[number] for number in range(samples)]
