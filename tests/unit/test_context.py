"""Loss against context: batched and chunked results equal those of single steps, for every target."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gru_lm.errors import InputError, Stopped, UsageError
from gru_lm.evaluation import context
from gru_lm.evaluation.context import ContextCurve, Point, context_curve
from gru_lm.model.language_model import LanguageModel
from tests.unit.test_scoring import NEWLINE, V, step_by_step, tiny_model

MODEL = tiny_model().double()
LONG = np.random.default_rng(3).integers(0, V, 600).astype(np.uint16)


def curve(
    tokens: np.ndarray | Sequence[np.ndarray], model: LanguageModel = MODEL, **options: Any
) -> ContextCurve:
    return context_curve(model, tokens, newline_id=NEWLINE, **options)


def interval(values: np.ndarray) -> tuple[float, float]:
    spread = math.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
    return float(values.mean()), 1.959964 * spread / math.sqrt(len(values))


def test_every_target_and_window_equals_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions of the text are sampled, so the reference needs no random choice."""
    monkeypatch.setattr(context, "CHUNK", 3)
    monkeypatch.setattr(context, "BATCH", 7)
    monkeypatch.setattr(context, "LEAST_TOKENS", 60)
    documents = [LONG[:30], LONG[30:34], LONG[34:60]]
    done: list[float] = []
    found = curve(documents, longest=15, progress=done.append)

    cold = {
        (number, start): -step_by_step(MODEL, document[start : start + 9].tolist())
        for number, document in enumerate(documents)
        for start in range(len(document))
    }
    targets = [(d, p) for d, document in enumerate(documents) for p in range(8, len(document))]
    nats = {n: np.array([cold[d, p - n][n] for d, p in targets]) for n in (0, 1, 2, 4, 8)}
    assert found.targets == len(targets) == 22 + 18
    assert [point.context for point in found.points] == list(nats)
    for point in found.points:
        of_n = nats[point.context]
        assert (point.nats, point.half) == pytest.approx(interval(of_n), rel=1e-6)
        difference = (point.difference, point.difference_half)
        assert difference == pytest.approx(interval(of_n - nats[8]), rel=1e-6, abs=1e-9)

    windows = np.array([one[:8] for (d, p), one in cold.items() if p + 8 <= len(documents[d])])
    assert found.windows == len(windows) == 23 + 19
    assert [(b.first, b.last) for b in found.bins] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    for first, last, mean, half in found.bins:
        expected = interval(windows[:, first : last + 1].mean(1))
        assert (mean, half) == pytest.approx(expected, rel=1e-6)
    assert sum(done) == pytest.approx(1)


def test_one_token_is_all_the_context_that_a_model_of_pairs_uses() -> None:
    model = tiny_model(cell="rnn").double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight_hh" in name:
                parameter.zero_()
    found = curve(LONG, model, longest=64, targets=200)
    none, one, *more = found.points
    assert abs(none.nats - one.nats) > 0.01 * one.nats
    assert [point.nats for point in more] == pytest.approx([one.nats] * 6, rel=1e-9)
    assert max(abs(point.difference_half) for point in (one, *more)) < 1e-9
    assert found.helps == 1


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5.0, 3.0, 2.1, 2.01, 2.0], 4),
        ([5.0, 3.0, 2.1, 2.03, 2.0], 8),
        ([5.0, 1.8, 2.1, 1.9, 2.0], 1),  # later points do not matter
        ([0.0] * 5, 0),
        ([math.nan, 3.0, 2.0, 2.0, 2.0], 2),
        ([5.0, 3.0, 2.0, 2.0, math.nan], None),
    ],
)
def test_the_context_that_helps_is_the_least_near_the_longest(
    losses: list[float], expected: int | None
) -> None:
    points = [Point(n, nats, 0, 0, 0) for n, nats in zip((0, 1, 2, 4, 8), losses, strict=True)]
    found = ContextCurve(targets=30, points=tuple(points), windows=30, bins=())
    assert found.helps == expected == found.as_dict()["helps"]


def test_the_seed_decides_what_is_drawn() -> None:
    drawn = [curve(LONG, longest=4, targets=40, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].bins != drawn[2].bins


def test_targets_have_all_their_context_in_their_document() -> None:
    lengths_D = np.array([200, 10, 7, 0, 83])
    for seed in range(3):
        drawn = context._draw(lengths_D, 9, 60, np.random.default_rng(seed))
        assert len(set(drawn)) == 60
        assert {document for document, _ in drawn} <= {0, 1, 4}
        assert all(start + 9 <= lengths_D[document] for document, start in drawn)


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [
        ([128], 1024, 64),  # half of the positions remain
        ([191], 1024, 64),
        ([256], 31, 16),  # never longer than requested
        ([20] * 30, 1024, 8),  # 16 would leave four positions per document
        ([300, 1, 1], 1, 1),
    ],
)
def test_the_longest_context_is_what_the_text_allows(
    lengths: list[int], longest: int, expected: int
) -> None:
    found = curve([LONG[:length] for length in lengths], longest=longest)
    assert found.points[-1].context == expected
    assert found.targets == sum(max(0, length - expected) for length in lengths)
    assert found.bins[-1].last == expected - 1


@pytest.mark.parametrize("lengths", [[], [127], [100, 27], [1] * 300])
def test_too_short_a_text(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="too short for a context curve"):
        curve([LONG[:length] for length in lengths])


@pytest.mark.parametrize("options", [{"longest": 0}, {"longest": 1 << 20}, {"targets": 1}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        curve(LONG, **options)


def test_json_is_in_bits_and_knows_no_infinity() -> None:
    found = curve(LONG, longest=2, targets=50)
    entry = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [point["context"] for point in entry["contexts"]] == [0, 1, 2]
    for point, told in zip(found.points, entry["contexts"], strict=True):
        assert told["bits_per_token"] == pytest.approx(point.nats / math.log(2))
        low, high = told["difference_ci95"]
        assert low + high == pytest.approx(2 * told["difference"])
        assert high - low == pytest.approx(2 * point.difference_half / math.log(2))
    assert entry["positions"][1]["bits_per_token"] == pytest.approx(
        found.bins[1].nats / math.log(2)
    )

    model = tiny_model().double()
    with torch.no_grad():
        model.head.bias[5] = -math.inf  # type: ignore[operator]
    impossible = curve(LONG, model, longest=2).as_dict()
    json.dumps(impossible, allow_nan=False)
    assert impossible["contexts"][0]["bits_per_token"] is None
    assert impossible["helps"] is None


def test_stop_is_asked_before_every_pass() -> None:
    def stop() -> None:
        raise Stopped(15)

    with pytest.raises(Stopped):
        curve(LONG, stop=stop)
