"""How far back a model makes use of a text: its loss against tokens of context, in two ways.

At the same targets, drawn at random, with exactly 0, 1, 2, 4, ... tokens read before each; and along
windows that start cold at random places. Knows tokens and a model; no text, no files, no picture.
Invariants: cold is the model's start as everywhere, the zero state fed the end of a line; nothing
reaches over a document's border; the same seed draws the same places; memory does not grow with the
text.

Shapes: D documents, M stretches drawn, B of them side by side, T tokens of a stretch, K contexts.
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
from gru_lm.signals import Stop, never

TARGETS = 2_000
LONGEST = 1_024  # tokens of context
WINDOWS = 512  # that start cold, for the loss by position
LEAST_TOKENS = 128  # of a text
WITHIN = 0.01  # of the longest context's loss: what is lost by less context is then no matter
MOST_TARGETS, MOST_CONTEXT = 100_000, 1 << 14
BATCH, CHUNK = 128, 64  # as many tokens a pass as in validation
_Z = NormalDist().inv_cdf(0.975)


class Point(NamedTuple):
    """The mean loss of all targets with so much context, nats a token; nan if one is not finite.

    A mean plus and minus its half is its 95 % interval.
    """

    context: int
    nats: float
    half: float
    difference: float  # to the longest of the exact contexts, target by target
    difference_half: float


class Bin(NamedTuple):
    """The same at the positions `first` to `last` of windows that start cold."""

    first: int
    last: int
    nats: float
    half: float


@dataclass(frozen=True)
class ContextCurve:
    """What `context_curve` finds."""

    targets: int
    points: tuple[Point, ...]  # by context, rising
    windows: int
    bins: tuple[Bin, ...]

    @property
    def helps(self) -> int | None:
        """The context that helps: the least whose loss is at most WITHIN above the longest one's.

        None where that one's is not finite.
        """
        longest = self.points[-1].nats
        enough = longest + WITHIN * abs(longest)
        return next((point.context for point in self.points if point.nats <= enough), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in bits a token; None for what is not finite."""
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
    progress: Callable[[float], None] = lambda _: None,
) -> ContextCurve:
    """The loss against tokens of context, of one document's tokens [N] or of several documents'.

    `points`: `targets` different positions, drawn evenly from those with the longest context before
    them in their document; each is scored with every context, n tokens read after the model's start.
    So differences between contexts are paired, and much surer than the losses. The contexts are 0 and
    the powers of two up to `longest`, or to where fewer places would be left than half of the text
    and than `targets`; which are fewer where the text has no more.

    `bins`: WINDOWS windows, as long as the longest context, start cold at places drawn evenly, and all
    of their positions are scored. Position k has k tokens of context too, but a bin is the mean over
    contexts from `first` to `last`, each at targets of its own, which are many in all but the first
    bins: it is the smoother curve, and what a reset costs; which context helps is the other's to say.

    Every interval is mean ± 1.96·s/√M, s² the sample variance (M − 1) over the M targets, or over the
    M windows' means of a bin, which are drawn independently of each other. It is how far the mean may
    be from that over all such places of this text, and so too wide where they are nearly all drawn;
    another text may differ by more.

    `stop` is called before every pass, `progress` with the share of the work done since it last was.
    Raises InputError for a text of fewer than LEAST_TOKENS or of documents without any context,
    UsageError for targets or a context out of range.
    """
    check_range("the number of targets", targets, 30, MOST_TARGETS)
    check_range("the longest context", longest, 1, MOST_CONTEXT)
    documents = [tokens] if isinstance(tokens, np.ndarray) else tokens
    lengths_D = np.array([len(document) for document in documents], np.int64)
    longest = _fitting(lengths_D, targets, longest)
    contexts = [0, *(1 << power for power in range(longest.bit_length()))]
    generator = np.random.default_rng(seed)
    stretches = _draw(lengths_D, longest + 1, targets, generator)
    windows = _draw(lengths_D, longest, WINDOWS, generator)
    work = len(stretches) * sum(n + 1 for n in contexts) + len(windows) * longest

    def read(places: Sequence[tuple[int, int]], skip: int, length: int, first: int) -> np.ndarray:
        """log p in stretches [M, length - first], which start `skip` after their places."""
        found = []
        for begin in range(0, len(places), BATCH):
            tokens_BT = np.stack(
                [
                    documents[document][start + skip : start + skip + length]
                    for document, start in places[begin : begin + BATCH]
                ]
            ).astype(np.int64)
            found.append(_cold(model, tokens_BT, newline_id=newline_id, first=first, stop=stop))
            progress(tokens_BT.size / work)
        return np.concatenate(found)

    nats_KM = np.array([-read(stretches, longest - n, n + 1, n)[:, 0] for n in contexts])
    points = tuple(
        Point(n, *_mean(nats_M), *_mean(_less(nats_M, nats_KM[-1])))
        for n, nats_M in zip(contexts, nats_KM, strict=True)
    )
    nats_MT = -read(windows, 0, longest, 0)
    return ContextCurve(
        targets=len(stretches),
        points=points,
        windows=len(windows),
        bins=tuple(
            Bin(first, end - 1, *_mean(nats_MT[:, first:end].mean(1)))
            for first, end in pairwise(contexts)
        ),
    )


def _fitting(lengths_D: np.ndarray, targets: int, longest: int) -> int:
    """The longest context, a power of two, that leaves places enough to draw from."""
    total = int(lengths_D.sum())
    if total < LEAST_TOKENS:
        raise InputError(
            "the text is too short for a context curve",
            why=f"it has {total} tokens, {LEAST_TOKENS} are needed",
            hint="name a longer text",
        )
    context = 1 << (longest.bit_length() - 1)
    while np.maximum(lengths_D - context, 0).sum() < min(targets, total / 2):
        context //= 2
    if not context:
        raise InputError(
            "the documents are too short for a context curve",
            why="most of them are single tokens, which have no context",
            hint="name a text of longer documents",
        )
    return context


def _draw(
    lengths_D: np.ndarray, length: int, count: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Different stretches of `length` tokens, in order of the text: document and start of each."""
    places_D = np.maximum(lengths_D - length + 1, 0)
    ends_D = places_D.cumsum()
    total = int(ends_D[-1])
    drawn_M = generator.choice(total, size=min(count, total), replace=False, shuffle=False)
    drawn_M.sort()
    document_M = np.searchsorted(ends_D, drawn_M, side="right")
    start_M = drawn_M - (ends_D - places_D)[document_M]
    return list(zip(document_M.tolist(), start_M.tolist(), strict=True))


def _cold(
    model: LanguageModel, tokens_BT: np.ndarray, *, newline_id: int, first: int, stop: Stop
) -> np.ndarray:
    """log p of stretches read from the model's start, from position `first` on: [B, T - first]."""
    with torch.inference_mode():
        state_LSBH = model.initial_state(len(tokens_BT))
        targets_BT = torch.from_numpy(tokens_BT).to(state_LSBH.device)
        inputs_BT = targets_BT.roll(1, 1)
        inputs_BT[:, 0] = newline_id
        found = []
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
                found.append(log_probs_N.view_as(scored_Bt))
        log_probs: np.ndarray = torch.cat(found, 1).double().cpu().numpy()
        return log_probs


def _mean(values_M: np.ndarray) -> tuple[float, float]:
    """The mean, and half its 95 % interval; both nan where a value is not finite."""
    if not np.isfinite(values_M).all():
        return math.nan, math.nan
    return float(values_M.mean()), float(_Z * values_M.std(ddof=1) / math.sqrt(len(values_M)))


def _less(nats_M: np.ndarray, other_M: np.ndarray) -> np.ndarray:
    """Their difference; nan where both are infinite."""
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
    """A mean and its interval in bits, under these names."""
    if math.isnan(nats):
        return {name: None, interval: None}
    value, low, high = (x / math.log(2) for x in (nats, nats - half, nats + half))
    return {name: value, interval: [low, high]}
