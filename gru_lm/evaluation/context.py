"""Loss as a function of context length: how many preceding tokens a model makes use of.

Measured in two ways: at random targets, each scored with exactly 0, 1, 2, 4, ... tokens of context; and
by position within random windows that start from the zero state. Knows tokens and a model, but no text,
files or plots. Invariants: a cold start is the zero state fed the end-of-line token, as everywhere; no
context crosses a document border; a seed determines the sample; memory does not grow with the text.

Shapes: D documents, M sampled spans, B spans per batch, T tokens of a span, K context lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch

from gru_lm.errors import InputError
from gru_lm.evaluation.adaptation import check_range
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never, unheard

TARGETS = 2_000
LONGEST = 1_024  # tokens of context
WINDOWS = 512  # for the loss by position
LEAST_TOKENS = 128  # of a text
WITHIN = 0.01  # relative excess over the loss at the longest context that counts as negligible
MOST_TARGETS, MOST_CONTEXT = 100_000, 1 << 14
BATCH, CHUNK = 128, 64  # the same tokens per pass as in validation
_Z = NormalDist().inv_cdf(0.975)


class Point(NamedTuple):
    """Mean loss over all targets at one context length, in nats per token; nan if not finite.

    The 95 % interval of a mean is mean ± half.
    """

    context: int
    nats: float
    half: float
    difference: float  # from the longest context, paired by target
    difference_half: float


class Bin(NamedTuple):
    """Mean loss at positions `first` to `last` of windows that start from the zero state."""

    first: int
    last: int
    nats: float
    half: float


@dataclass(frozen=True)
class ContextCurve:
    """Result of `context_curve`."""

    targets: int
    points: tuple[Point, ...]  # by increasing context
    windows: int
    bins: tuple[Bin, ...]

    @property
    def helps(self) -> int | None:
        """The useful context: the shortest with a loss within WITHIN of that at the longest.

        None if the loss at the longest context is not finite.
        """
        longest = self.points[-1].nats
        enough = longest + WITHIN * abs(longest)
        return next((point.context for point in self.points if point.nats <= enough), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in bits per token; None where not finite."""
        return {
            "targets": self.targets,
            "contexts": [_point_dict(point) for point in self.points],
            "helps": self.helps,
            "helps_within": WITHIN,
            "windows": self.windows,
            "positions": [
                {"first": first, "last": last, **_bits("bits_per_token", "ci95", nats, half)}
                for first, last, nats, half in self.bins
            ],
        }


def context_curve(
    model: LanguageModel,
    tokens: np.ndarray | Sequence[np.ndarray],
    *,
    newline_id: int,
    targets: int = TARGETS,
    longest: int = LONGEST,
    seed: int = 0,
    stop: Stop = never,
    progress: Callable[[float], None] = unheard,
) -> ContextCurve:
    """Measure the loss against context length, on one document's tokens [N] or on several documents.

    `points`: `targets` distinct positions are sampled uniformly from those with at least the longest
    context in their document, and each is scored with every context length n, by reading n tokens from a
    cold start. Differences between context lengths are therefore paired and far more precise than the
    losses. The lengths are 0 and the powers of two up to `longest`; the longest is reduced until enough
    positions remain: `targets` or half of the text, whichever is less. A short text has fewer targets.

    `bins`: WINDOWS windows of the longest context length start cold at uniformly sampled positions, and
    every position is scored. A bin averages over positions `first` to `last`, with different targets at
    each position. This curve is smoother and shows the cost of a state reset; use `points` to find the
    useful context.

    Every interval is mean ± 1.96·s/√M, where s² is the sample variance (M − 1) over the M targets, or
    over the means of the M windows in a bin; samples are independent. It covers sampling of positions in
    this text only: it is too wide where nearly all positions are sampled, and another text may differ
    by more.

    `stop` is called before every pass, `progress` with the fraction of the work done since its last
    call. Raises InputError if the text has fewer than LEAST_TOKENS or its documents leave no context,
    UsageError if `targets` or `longest` is out of range.
    """
    check_range("the number of targets", targets, 30, MOST_TARGETS)
    check_range("the longest context", longest, 1, MOST_CONTEXT)
    documents = [tokens] if isinstance(tokens, np.ndarray) else tokens
    lengths_D = np.array([len(document) for document in documents], np.int64)
    longest = _fitting(lengths_D, targets, longest)
    contexts = [0, *(1 << power for power in range(longest.bit_length()))]
    generator = np.random.default_rng(seed)
    spans = _draw(lengths_D, longest + 1, targets, generator)
    windows = _draw(lengths_D, longest, WINDOWS, generator)
    work = len(spans) * sum(n + 1 for n in contexts) + len(windows) * longest

    def read(places: Sequence[tuple[int, int]], skip: int, length: int, first: int) -> np.ndarray:
        """log p [M, length - first] in spans of `length` that start `skip` tokens after `places`."""
        log_probs = []
        for begin in range(0, len(places), BATCH):
            tokens_BT = np.stack(
                [
                    documents[document][start + skip : start + skip + length]
                    for document, start in places[begin : begin + BATCH]
                ]
            ).astype(np.int64)
            log_probs.append(_cold(model, tokens_BT, newline_id=newline_id, first=first, stop=stop))
            progress(tokens_BT.size / work)
        return np.concatenate(log_probs)

    nats_KM = np.array([-read(spans, longest - n, n + 1, n)[:, 0] for n in contexts])
    points = tuple(
        Point(n, *_mean(nats_M), *_mean(_less(nats_M, nats_KM[-1])))
        for n, nats_M in zip(contexts, nats_KM, strict=True)
    )
    nats_MT = -read(windows, 0, longest, 0)
    return ContextCurve(
        targets=len(spans),
        points=points,
        windows=len(windows),
        bins=tuple(
            Bin(first, end - 1, *_mean(nats_MT[:, first:end].mean(1)))
            for first, end in pairwise(contexts)
        ),
    )


def _fitting(lengths_D: np.ndarray, targets: int, longest: int) -> int:
    """The largest power of two up to `longest` that leaves enough positions to sample from."""
    total = int(lengths_D.sum())
    if total < LEAST_TOKENS:
        raise InputError(
            "the text is too short for a context curve",
            why=f"it has {total} tokens, at least {LEAST_TOKENS} are needed",
            hint="use a longer text",
        )
    context = 1 << (longest.bit_length() - 1)
    while np.maximum(lengths_D - context, 0).sum() < min(targets, total / 2):
        context //= 2
    if not context:
        raise InputError(
            "the documents are too short for a context curve",
            why="most have a single token, which has no context",
            hint="use a text with longer documents",
        )
    return context


def _draw(
    lengths_D: np.ndarray, length: int, count: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Sample distinct spans of `length` tokens, in text order: document and start of each."""
    starts_D = np.maximum(lengths_D - length + 1, 0)
    ends_D = starts_D.cumsum()
    total = int(ends_D[-1])
    sample_M = generator.choice(total, size=min(count, total), replace=False, shuffle=False)
    sample_M.sort()
    document_M = np.searchsorted(ends_D, sample_M, side="right")
    start_M = sample_M - (ends_D - starts_D)[document_M]
    return list(zip(document_M.tolist(), start_M.tolist(), strict=True))


def _cold(
    model: LanguageModel, tokens_BT: np.ndarray, *, newline_id: int, first: int, stop: Stop
) -> np.ndarray:
    """log p [B, T - first] of spans read from a cold start, from position `first` on."""
    with torch.inference_mode():
        state_LSBH = model.initial_state(len(tokens_BT))
        targets_BT = torch.from_numpy(tokens_BT).to(state_LSBH.device)
        inputs_BT = targets_BT.roll(1, 1)
        inputs_BT[:, 0] = newline_id
        parts = []
        for begin in range(0, tokens_BT.shape[1], CHUNK):
            stop()
            end = begin + CHUNK
            hidden_BtH, state_LSBH = model.hidden(inputs_BT[:, begin:end], state_LSBH)
            if end > first:
                scored_Bt = targets_BT[:, max(first, begin) : end]
                hidden_BtH = hidden_BtH[:, max(first - begin, 0) :]
                log_probs_N = model.head.target_log_probs(
                    hidden_BtH.flatten(0, 1), scored_Bt.flatten()
                )
                parts.append(log_probs_N.view_as(scored_Bt))
        log_probs: np.ndarray = torch.cat(parts, 1).double().cpu().numpy()
        return log_probs


def _mean(values_M: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; both nan if any value is not finite."""
    if not np.isfinite(values_M).all():
        return math.nan, math.nan
    return float(values_M.mean()), float(_Z * values_M.std(ddof=1) / math.sqrt(len(values_M)))


def _less(nats_M: np.ndarray, other_M: np.ndarray) -> np.ndarray:
    """Difference; nan where both are infinite."""
    with np.errstate(invalid="ignore"):
        less_M: np.ndarray = nats_M - other_M
    return less_M


def _point_dict(point: Point) -> dict[str, Any]:
    return {
        "context": point.context,
        **_bits("bits_per_token", "ci95", point.nats, point.half),
        **_bits("difference", "difference_ci95", point.difference, point.difference_half),
    }


def _bits(name: str, interval: str, nats: float, half: float) -> dict[str, Any]:
    """Convert a mean and its interval to bits, under the given keys."""
    if math.isnan(nats):
        return {name: None, interval: None}
    value, low, high = (x / math.log(2) for x in (nats, nats - half, nats + half))
    return {name: value, interval: [low, high]}
