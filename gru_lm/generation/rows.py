"""Rows of a batch, each of which draws one record from its beginning to its end.

Depends on a model and a tokenizer; which records are drawn is decided in records.py.

Shapes: R rows, N some of them, T time, C tokens held of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gru_lm.generation.beginning import Beginning
from gru_lm.generation.choice import Choice
from gru_lm.generation.sampling import never_drawn, next_tokens
from gru_lm.generation.selection import Record
from gru_lm.generation.uniform import sequences, uniform
from gru_lm.generation.writing import Writer, whole_pieces
from gru_lm.model.heads import FullSoftmax
from gru_lm.model.language_model import LanguageModel
from gru_lm.model.stepper import make_stepper
from gru_lm.text.tokenizer import Tokenizer

MOST, FEWEST = 512, 16  # rows
FIRST = 64  # rows until the first record has ended
LOGITS = 1 << 23  # log-probabilities computed at once, at most
TOKENS = 1 << 22  # of unfinished records, about, at most


class Rows:
    """Records being drawn; the arguments are those of records.draw_records."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        length: int,
        one_line: bool,
        choice: Choice,
        stop_strings: Sequence[str],
        seed: int,
        allow_unknown: bool,
        with_logprobs: bool,
        check: Callable[[], None],
    ) -> None:
        V = model.config.vocab_size
        self._most = R = max(FEWEST, min(MOST, LOGITS // V))
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._length, self._choice, self._seed, self._check = length, choice, seed, check
        self._end = tokenizer.end_id
        never = {*never_drawn(tokenizer, allow_unknown=allow_unknown)}
        if isinstance(model.head, FullSoftmax):  # bytes and characters that no record has
            never |= {*model.head.unseen()}
        if one_line:
            never |= {token for token in range(V) if b"\n" in tokenizer.surface(token)}
        self._never = sorted(never - {self._end})
        self._whole, self._stop_strings = whole_pieces(tokenizer), stop_strings
        self._with_logprobs = with_logprobs
        self._begins: dict[int, Beginning] = {}
        self._stepper = make_stepper(model, model.initial_state(R))
        self._stepper.keep([])
        self._used, self._holes = (
            0,
            np.empty(0, np.int64),
        )  # rows in use from 0 on, but for the holes
        self._ready: list[Record] = []  # ended at their first token
        self._prompt_R, self._number_R, self._opening_R, self._drawn_R, self._last_R = np.zeros(
            (5, R), np.int64
        )
        self._sequence_R, self._nats_R = np.zeros(R, np.uint64), np.zeros(R)
        self._tokens_RC = np.zeros((R, 32), np.int32)
        # The log-probability of each token, where a part of them may be asked for.
        self._each_RC = np.zeros((R, 32 if with_logprobs or stop_strings else 0), np.float32)
        self._seen_RV = np.zeros((R, V if choice.repetition_penalty != 1 else 0), bool)
        self._ended = self._ended_tokens = 0  # records so far, and their tokens

    @property
    def active(self) -> int:
        """Number of records being drawn."""
        return self._used - len(self._holes)

    @property
    def free(self) -> int:
        """How many more may be started: the longer records are, the fewer."""
        mean = self._ended_tokens / self._ended if self._ended else TOKENS / FIRST
        allowed = max(FEWEST, min(self._most, int(TOKENS / max(mean, 1))))
        return max(0, allowed - self.active)

    def start(self, prompt: int, first: int, count: int) -> None:
        """Start the draws `first`, `first` + 1, ... of a prompt, and draw the first token of each."""
        numbers_N = np.arange(first, first + count)
        if not self._length:
            self._ready += [
                Record(prompt=prompt, number=each, stop="length") for each in numbers_N.tolist()
            ]
            return
        if prompt not in self._begins:
            self._begins[prompt] = self._beginning(prompt)
        begin = self._begins[prompt]
        sequence_N = sequences(begin.base_1, numbers_N)
        candidate_N = begin.choose(uniform(sequence_N, np.zeros_like(numbers_N)))
        tokens_N = begin.tokens_M[candidate_N]
        nats_N = begin.log_probs_M[candidate_N]
        opening_N = begin.opening_M[candidate_N]
        rows_N = self._take(count)
        self._prompt_R[rows_N], self._number_R[rows_N] = prompt, numbers_N
        self._opening_R[rows_N], self._sequence_R[rows_N] = opening_N, sequence_N
        self._drawn_R[rows_N], self._last_R[rows_N] = 1, tokens_N
        self._nats_R[rows_N], self._tokens_RC[rows_N, 0] = nats_N, tokens_N
        if self._each_RC.size:
            self._each_RC[rows_N, 0] = nats_N
        if self._seen_RV.size:
            self._seen_RV[rows_N] = begin.seen_V
            self._seen_RV[rows_N, tokens_N] = True
        self._stepper.start(rows_N, begin.states(opening_N))
        ended_N = tokens_N == self._end
        over_N = ended_N | (self._length == 1)
        if over_N.any():
            ones = np.ones_like(numbers_N)
            self._ready += self._finish(rows_N[over_N], ones[over_N], ended_N[over_N])

    def _beginning(self, prompt: int) -> Beginning:
        return Beginning(
            self._model,
            self._tokenizer,
            self._prompts[prompt],
            choice=self._choice,
            seed=(self._seed, prompt),
            never=self._never,
            whole=self._whole,
            check=self._check,
        )

    def _take(self, count: int) -> np.ndarray:
        """The numbers [N] of free rows: holes first, then new ones."""
        holes_N, self._holes = self._holes[:count], self._holes[count:]
        new = count - len(holes_N)
        self._used += new
        return np.append(holes_N, np.arange(self._used - new, self._used))

    def forget(self, prompt: int) -> None:
        """Give up the draws of a prompt."""
        self._begins.pop(prompt, None)
        is_hole_N = np.zeros(self._used, bool)
        is_hole_N[self._holes] = True
        is_hole_N |= self._prompt_R[: self._used] == prompt
        self._holes = np.flatnonzero(is_hole_N)
        self._ready = [record for record in self._ready if record.prompt != prompt]

    def step(self) -> list[Record]:
        """Draw the next tokens of all records; return those that are finished, in no order."""
        finished, self._ready = self._ready, []
        self._close_holes()
        R = self._used
        if not R:
            return finished
        drawn_R, sequence_R = self._drawn_R[:R], self._sequence_R[:R]
        # Short records end soon: the tokens drawn after their end are lost.
        T = min(self._stepper.steps_at_once, 1 + int(drawn_R.min()) // 8)
        T = min(T, self._length - int(drawn_R.max()))
        uniform_RT = np.stack([uniform(sequence_R, drawn_R + t) for t in range(T)], 1)
        tokens_RT, log_probs_RT = next_tokens(
            self._stepper,
            self._choice,
            self._last_R[:R],
            uniform_RT,
            never=self._never,
            seen_NV=self._seen_RV[:R],
        )
        self._make_room(int(drawn_R.max()) + T)
        ends_RT = tokens_RT == self._end
        ended_R = ends_RT.any(1)
        lengths_R = drawn_R + np.where(ended_R, ends_RT.argmax(1) + 1, T)
        rows_R = np.arange(R)
        for t in range(T):  # one by one, as the sum must not depend on T
            self._tokens_RC[rows_R, drawn_R + t] = tokens_RT[:, t]
            self._nats_R[:R] += np.where(drawn_R + t < lengths_R, log_probs_RT[:, t], 0)
            if self._each_RC.size:
                self._each_RC[rows_R, drawn_R + t] = log_probs_RT[:, t]
        drawn_R += T
        self._last_R[:R] = tokens_RT[:, -1]
        rows_N = np.flatnonzero(ended_R | (lengths_R >= self._length))
        return finished + self._finish(rows_N, lengths_R[rows_N], ended_R[rows_N])

    def _close_holes(self) -> None:
        if not len(self._holes):
            return
        rows_N = np.setdiff1d(np.arange(self._used), self._holes)
        self._stepper.keep(rows_N.tolist())
        for each in (
            *(self._prompt_R, self._number_R, self._opening_R, self._drawn_R, self._last_R),
            *(self._sequence_R, self._nats_R, self._tokens_RC, self._each_RC, self._seen_RV),
        ):
            each[: len(rows_N)] = each[rows_N]
        self._used, self._holes = len(rows_N), self._holes[:0]

    def _make_room(self, tokens: int) -> None:
        for name in ("_tokens_RC", "_each_RC"):
            held = getattr(self, name)
            if 0 < held.shape[1] < tokens:
                setattr(self, name, np.pad(held, ((0, 0), (0, tokens))))

    def _finish(
        self, rows_N: np.ndarray, lengths_N: np.ndarray, ended_N: np.ndarray
    ) -> list[Record]:
        """The records in these rows, which become holes."""
        if not len(rows_N):
            return []
        self._holes = np.append(self._holes, rows_N)
        self._ended += len(rows_N)
        self._ended_tokens += int(lengths_N.sum())
        most = lengths_N.max()
        columns = (
            each.tolist()
            for each in (
                *(rows_N, lengths_N, ended_N),
                *(self._prompt_R[rows_N], self._number_R[rows_N], self._opening_R[rows_N]),
                *(self._nats_R[rows_N], self._tokens_RC[rows_N, :most]),
            )
        )
        records = []
        for row, size, ended, prompt, number, opening, nats, padded in zip(*columns, strict=True):
            tokens = padded[:size]
            text, used, why = self._decoded(self._begins[prompt], opening, tokens, ended)
            record = Record(text, used, nats, why, prompt=prompt, number=number)
            if used < size:
                record.logprob = float(self._each_RC[row, :used].sum(dtype=float))
            if self._with_logprobs:
                pieces = map(self._tokenizer.piece, tokens[:used])
                each = self._each_RC[row, :used].tolist()
                record.logprobs = list(zip(tokens[:used], pieces, each, strict=True))
            records.append(record)
        return records

    def _decoded(
        self, begin: Beginning, number: int, tokens: list[int], ended: bool
    ) -> tuple[str, int, str]:
        """Text of a record that follows an opening, number of tokens used, and why it is over."""
        if begin.clear_K[number] and not self._stop_strings:
            try:  # most often
                text = "".join(map(self._whole.__getitem__, tokens[: len(tokens) - ended]))
                return text, len(tokens), "end" if ended else "length"
            except KeyError:  # bytes of characters
                pass
        opening = begin.openings[number]
        writer = Writer(self._tokenizer, self._whole, opening, stop_strings=self._stop_strings)
        text, used, why = writer.push(tokens)
        if why is None:
            text += writer.flush()
            why = "end" if ended else "length"
            if ended:  # by a line break
                text = text.removesuffix("\n")
        return text, used, why
