"""Time reserved from the budget for the end of a run: validation, test and saving."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gru_lm.commands.train.clock import EXIT_SECONDS, Pace
from gru_lm.evaluation import validation
from gru_lm.evaluation.scoring import COLUMN_BATCH, COLUMN_CHUNK, columns_read


def pace(*, test: int = 0, before: float = 0.0) -> Pace:
    return Pace(started=time.monotonic(), before=before, held_out=100, test=test, step_tokens=10)


def reserve(chosen: Pace) -> float:
    return chosen.clock() - chosen.elapsed() - EXIT_SECONDS


def close(seconds: float) -> object:
    return pytest.approx(seconds, abs=0.05)  # tolerance, as the clock is read twice


def test_time_is_reserved_for_all_remaining_measurements() -> None:
    for test, measurements in ((0, 5.0), (400, 5.0 + 8.0)):  # the test measurement draws no sample
        chosen = pace(test=test)
        chosen.validation_seconds, chosen.measure_seconds, chosen.save_seconds = 5.0, 2.0, 3.0
        assert reserve(chosen) == close(measurements + 3.0)


def test_last_step_may_overrun_by_half_a_step() -> None:
    chosen = pace()
    assert reserve(chosen) == close(0.0)
    for seconds in (60.0, 3.0, 3.0, 3.0, 9.0):  # the first step is always slow
        chosen.step(seconds)
    assert reserve(chosen) == close(3.0 / 2)
    assert chosen.tokens_per_second() == pytest.approx(50 / 78)


def test_time_of_earlier_commands_counts() -> None:
    assert pace(before=40.0).elapsed() == close(40.0)


def test_validation_time_is_predicted_from_warm_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Timings as observed on one core: the second trial took three times as long as the later ones."""
    now, tries = 0.0, iter((0.5, 0.386, 0.112, 0.12))
    piece = COLUMN_BATCH * COLUMN_CHUNK

    def validate(_: object, tokens: np.ndarray, **__: object) -> None:
        nonlocal now
        assert len(tokens) == piece
        now += next(tries)

    monkeypatch.setattr(validation, "validate", validate)
    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: now))
    model: Any = None
    seconds = validation.seconds_of(model, np.zeros(20 * piece), newline_id=0, stop=lambda: None)
    whole = 0.112 * columns_read(20 * piece) / piece
    assert whole < seconds < 1.3 * whole
