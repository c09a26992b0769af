"""Log-probabilities of every token of a text, as a stream.

Independent sequences (documents or lines) are the rows of a batch, each with its own carried state;
`columns` splits one long token array instead. Knows tokens and a model, but no text, tokenizer or files.
Invariant: every token is scored once, given all tokens before it in its sequence; the first is given the
end-of-line token, fed to the zero state. `batch` and `chunk` affect speed, and results by rounding only.

Shapes: B batch, T time, N tokens, n tokens of a slice, V vocabulary, X extra values per token, L layers,
S states of the cell, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never, unheard

Tokens = Sequence[int] | np.ndarray
# Maps log-distributions [n, V], in nats, to X extra values each [n, X].
OfDistribution = Callable[[Tensor], Tensor]

WARM = 512  # tokens before a column that are read but not scored
LEAST = 4  # minimal length of a column, as a multiple of its warm-up
COLUMN_BATCH, COLUMN_CHUNK = 64, 128
HELD = 1 << 21  # scored tokens buffered to keep the output in order: about 32 MiB
SLICE = 1 << 22  # entries of the log-distributions computed at once: 16 MiB


class Portion(NamedTuple):
    """Consecutive scored tokens of one document."""

    document: int
    tokens_N: np.ndarray  # int32
    log_probs_N: np.ndarray  # float64, nats
    extra_NX: np.ndarray  # float64


class Totals(NamedTuple):
    """Sums over scored tokens."""

    tokens: int
    nats: float
    unknown_tokens: int
    unknown_nats: float


class _Row:
    """One active sequence: tokens that were read but not yet scored, and the token before them."""

    def __init__(self, document: int, order: int, chunks: Iterable[Tokens], last: int) -> None:
        self.document = document
        self.order = order
        self.chunks = iter(chunks)
        self.last = last
        self.tokens_N = np.empty(0, np.int32)

    def fill(self, wanted: int) -> bool:
        """Read until `wanted` tokens are buffered or the sequence ends; False if none are left."""
        parts, have = [self.tokens_N], len(self.tokens_N)
        while have < wanted and (chunk := next(self.chunks, None)) is not None:
            parts.append(np.asarray(chunk, np.int32))
            have += len(chunk)
        if len(parts) > 1:
            self.tokens_N = np.concatenate(parts)
        return have > 0

    def take(self, inputs_T: np.ndarray, targets_T: np.ndarray) -> np.ndarray:
        """Move the next tokens into one row of a batch, as inputs and targets; return them."""
        taken_N = self.tokens_N[: len(targets_T)]
        inputs_T[0] = self.last
        inputs_T[1 : len(taken_N)] = taken_N[:-1]
        targets_T[: len(taken_N)] = taken_N
        self.last = int(taken_N[-1])
        self.tokens_N = self.tokens_N[len(taken_N) :]
        return taken_N


def score(
    model: LanguageModel,
    sequences: Iterable[tuple[int, Iterable[Tokens]]],
    *,
    newline_id: int,
    batch: int,
    chunk: int,
    of_distribution: OfDistribution | None = None,
    stop: Stop = never,
    progress: Callable[[np.ndarray], None] = unheard,
) -> Iterator[Portion]:
    """Score sequences, given as (document number, tokens in chunks of any size), in order.

    Runs at most `batch` sequences at once and at most `chunk` steps per pass. Sequences are opened in
    order and read on demand, and at most about HELD tokens are buffered behind an earlier sequence, so
    memory does not grow with the text. `stop` is called before every pass, `progress` with the tokens of
    every pass.
    """
    source = enumerate(sequences)
    rows: list[_Row] = []
    state_LSBH = model.initial_state(0)
    held: dict[int, list[Portion]] = {}
    held_tokens = opened = following = 0
    while True:
        stop()
        kept = [index for index, row in enumerate(rows) if row.fill(chunk)]
        if len(kept) < len(rows):
            rows = [rows[index] for index in kept]
            state_LSBH = state_LSBH[:, :, kept]

        # Rows are in order: all sequences before the first row are finished and can be yielded.
        first = rows[0].order if rows else opened
        for order in range(following, first + 1):
            for portion in held.pop(order, ()):
                held_tokens -= len(portion.tokens_N)
                yield portion
        following = first

        while len(rows) < batch and held_tokens < HELD and (item := next(source, None)):
            opened, row = item[0] + 1, _Row(item[1][0], item[0], item[1][1], newline_id)
            if row.fill(chunk):
                rows.append(row)
        if len(rows) > state_LSBH.shape[2]:
            fresh = model.initial_state(len(rows) - state_LSBH.shape[2])
            state_LSBH = torch.cat((state_LSBH, fresh), dim=2)
        if not rows:
            return

        # If too much is buffered behind the first row, it runs alone until it has caught up.
        running = rows if held_tokens < HELD else rows[:1]
        B, T = len(running), min(chunk, max(len(row.tokens_N) for row in running))
        inputs_BT = np.full((B, T), newline_id, np.int64)  # the value of the padding is arbitrary
        targets_BT = np.full((B, T), newline_id, np.int64)
        taken = [
            row.take(inputs_T, targets_T)
            for row, inputs_T, targets_T in zip(running, inputs_BT, targets_BT, strict=True)
        ]
        figures, after = forward(
            model, inputs_BT, targets_BT, state_LSBH[:, :, :B], of_distribution
        )
        state_LSBH = torch.cat((after, state_LSBH[:, :, B:]), dim=2) if len(rows) > B else after
        figures_BTX = figures.cpu().numpy()
        for row, tokens_N, figures_TX in zip(running, taken, figures_BTX, strict=True):
            figures_NX = figures_TX[: len(tokens_N)]
            portion = Portion(row.document, tokens_N, figures_NX[:, 0], figures_NX[:, 1:])
            held.setdefault(row.order, []).append(portion)
            held_tokens += len(tokens_N)
        progress(np.concatenate(taken))


def lines(
    chunks: Iterable[Tokens], *, newline_id: int, tail: Sequence[int] = ()
) -> Iterator[list[np.ndarray]]:
    """Split a token stream into lines, each including its newline, as sequences for `score`.

    `tail`, an end-of-document token, is appended to the last line. One line is in memory at a time.

    >>> stream = [[5, 2, 6], [7, 2]]
    >>> [[part.tolist() for part in line] for line in lines(stream, newline_id=2, tail=[1])]
    [[[5, 2]], [[6], [7, 2], [1]]]
    """
    line: list[np.ndarray] = []
    complete = False
    for chunk in chunks:
        tokens_N = np.asarray(chunk, np.int32)
        for part in np.split(tokens_N, np.flatnonzero(tokens_N == newline_id) + 1):
            if not len(part):
                continue
            if complete:
                yield line
                line = []
            line.append(part)
            complete = part[-1] == newline_id
    if tail:
        line.append(np.asarray(tail, np.int32))
    if line:
        yield line


class Columns(NamedTuple):
    """One pass over B columns: positions in the token array, and the scores there."""

    positions_BT: np.ndarray
    valid_BT: np.ndarray  # False beyond the end of a column that is one token shorter than others
    figures_BTX: Tensor  # float64, on the model's device: log-probability, then the extra values


def columns(
    model: LanguageModel,
    tokens: np.ndarray,
    *,
    newline_id: int,
    count: int = COLUMN_BATCH,
    batch: int = COLUMN_BATCH,
    chunk: int = COLUMN_CHUNK,
    warm: int = WARM,
    of_distribution: OfDistribution | None = None,
    stop: Stop = never,
) -> Iterator[Columns]:
    """Score a token array [N] in parallel columns, which together cover each token once.

    Each of `count` columns is warmed up on the `warm` unscored tokens before it; `batch` columns run at
    once. Columns shorter than LEAST times the warm-up are avoided by using fewer; a single column is the
    exact stream.
    """
    N = len(tokens)
    if N == 0:
        return
    tokens = np.asarray(tokens)
    count = max(1, min(count, N // max(1, LEAST * warm)))
    borders = np.arange(count + 1) * N // count

    def inputs_at(positions_BT: np.ndarray) -> np.ndarray:
        before_BT = tokens[np.maximum(positions_BT - 1, 0)].astype(np.int64)
        return np.where(positions_BT <= 0, newline_id, before_BT)

    for first in range(0, count, batch):
        starts_B1 = borders[:-1, None][first : first + batch]
        ends_B1 = borders[1:, None][first : first + batch]
        state_LSBH = model.initial_state(len(starts_B1))
        for begin in range(-warm if count > 1 else 0, 0, chunk):
            stop()
            inputs_BT = inputs_at(starts_B1 + np.arange(begin, min(0, begin + chunk)))
            state_LSBH = _warm(model, inputs_BT, state_LSBH)
        if first == 0:
            with torch.inference_mode():
                state_LSBH[:, :, 0] = 0  # nothing precedes the first column

        longest = int((ends_B1 - starts_B1).max())
        for begin in range(0, longest, chunk):
            stop()
            positions_BT = starts_B1 + np.arange(begin, min(longest, begin + chunk))
            valid_BT = positions_BT < ends_B1
            targets_BT = tokens[np.minimum(positions_BT, N - 1)].astype(np.int64)
            figures_BTX, state_LSBH = forward(
                model, inputs_at(positions_BT), targets_BT, state_LSBH, of_distribution
            )
            yield Columns(positions_BT, valid_BT, figures_BTX)


def columns_read(tokens: int) -> int:
    """Number of tokens that `columns` reads to score `tokens`, including the warm-up."""
    return tokens + WARM * min(COLUMN_BATCH, tokens // (LEAST * WARM))


def validate(
    model: LanguageModel,
    tokens: np.ndarray,
    *,
    newline_id: int,
    unknown_id: int | None = None,
    count: int = COLUMN_BATCH,
    chunk: int = COLUMN_CHUNK,
    warm: int = WARM,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> Totals:
    """Sums over an array of tokens, by `columns`; `progress` is called with the tokens scored."""
    nats = unknown_nats = torch.zeros((), dtype=torch.float64, device=model.initial_state(1).device)
    unknown_tokens = 0
    for positions_BT, valid_BT, figures_BTX in columns(
        model, tokens, newline_id=newline_id, count=count, chunk=chunk, warm=warm, stop=stop
    ):
        log_probs_BT = figures_BTX[..., 0]
        # Sums stay on the device; reading them here would synchronise with the GPU on every pass.
        nats = nats - _where(log_probs_BT, valid_BT).sum()
        if unknown_id is not None:
            unknown_BT = valid_BT & (
                tokens[np.minimum(positions_BT, len(tokens) - 1)] == unknown_id
            )
            unknown_tokens += int(unknown_BT.sum())
            unknown_nats = unknown_nats - _where(log_probs_BT, unknown_BT).sum()
        progress(int(valid_BT.sum()))
    return Totals(len(tokens), float(nats), unknown_tokens, float(unknown_nats))


def _where(log_probs_BT: Tensor, mask_BT: np.ndarray) -> Tensor:
    if mask_BT.all():
        return log_probs_BT
    # Not a product: -inf, of a token of probability 0, times 0 would be NaN.
    return log_probs_BT.where(torch.from_numpy(mask_BT).to(log_probs_BT.device), 0)


def forward(
    model: LanguageModel,
    inputs_BT: np.ndarray,
    targets_BT: np.ndarray,
    state_LSBH: Tensor,
    of_distribution: OfDistribution | None,
    starts_BT: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """log p of the targets and the extra values [B, T, 1 + X] in float64, and the new state.

    `starts_BT` marks tokens before which the state is zero; with it, targets of -1 are padding, whose
    values are arbitrary but finite.
    """
    with torch.inference_mode():
        inputs = torch.from_numpy(inputs_BT).to(state_LSBH.device)
        targets = torch.from_numpy(targets_BT).to(state_LSBH.device)
        starts = None if starts_BT is None else torch.from_numpy(starts_BT)
        if of_distribution is None:
            log_probs, state_LSBH = model.target_log_probs(inputs, targets, state_LSBH, starts)
            return log_probs.double()[..., None], state_LSBH
        targets = targets.clamp(min=0)
        hidden_BTH, state_LSBH = model.hidden(inputs, state_LSBH, starts)
        size = max(1, SLICE // model.config.vocab_size)
        parts = []
        for hidden_nH, target_n in zip(
            torch.split(hidden_BTH.flatten(0, 1), size),
            torch.split(targets.flatten(), size),
            strict=True,
        ):
            log_probs_nV = model.head.log_probs(hidden_nH)
            of_target_n1 = log_probs_nV.gather(1, target_n[:, None])
            parts.append(torch.cat((of_target_n1, of_distribution(log_probs_nV)), 1).double())
        return torch.cat(parts).view(*targets.shape, -1), state_LSBH


def _warm(model: LanguageModel, inputs_BT: np.ndarray, state_LSBH: Tensor) -> Tensor:
    """The state after reading `inputs_BT`."""
    with torch.inference_mode():
        inputs = torch.from_numpy(inputs_BT).to(state_LSBH.device)
        return model.hidden(inputs, state_LSBH)[1]
