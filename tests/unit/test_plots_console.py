"""Plots are valid PNGs for any metrics; the console separates results from notes and escapes codes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gru_lm import __version__
from gru_lm.reporting import console
from gru_lm.reporting.plots import context_png, curves_png, loss_png

TRAIN = [{"step": i, "tokens": 100 * i, "loss": 5.0 / i} for i in range(1, 9)]
VALID = [{"step": 8, "tokens": 800, "valid_nats_per_token": 1.25}]


@pytest.mark.parametrize("metrics", [[], TRAIN[:1], TRAIN, VALID, TRAIN + VALID, TRAIN * 500])
def test_loss_plot_of_any_metrics(metrics: list[dict[str, Any]]) -> None:
    png = loss_png(metrics, "gru, 1,000 parameters")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png[16:24] == (840).to_bytes(4, "big") + (504).to_bytes(4, "big")


def test_plot_depends_on_the_data() -> None:
    assert loss_png(TRAIN, "a") == loss_png(TRAIN, "a") != loss_png(TRAIN + VALID, "a")


def test_a_single_validation_a_run_is_drawn() -> None:
    """A line of one point would be invisible."""
    once = [{"step": 9, "tokens": 90, "seconds": 1.0, "valid_bits_per_byte": 2.0}]
    other = [{**once[0], "valid_bits_per_byte": 2.01}]
    # The same axes, with and without a second run in between.
    between = [{**once[0], "valid_bits_per_byte": 2.005}]
    assert curves_png({"gru": [once, between, other]}) != curves_png({"gru": [once, other, other]})


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result_json({"a": "ü\n", "b": None})
    console.note("a note [bold]with brackets[/bold]")
    console.warn("careful")
    with console.progress("working", 10) as advance:
        advance(10)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"gru_lm": __version__, "a": "ü\n", "b": None}
    assert out.count("\n") == 1
    assert err == "a note [bold]with brackets[/bold]\nwarning: careful\n"


def test_json_rejects_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        console.result_json({"a": float("nan")})


def test_error_is_three_lines_with_escaped_control_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.error("bad\nname \x1b[31m\x9b", why="two\n\nlines\r", hint="h" * 500)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: bad name \\x1b[31m\\x9b", "two lines", "hint: " + "h" * 500]


def test_table_in_a_pipe_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("name", "bytes"), [("a", "1,000"), ("b", "2")])
    assert capsys.readouterr().out == "name\tbytes\na\t1,000\nb\t2\n"


def test_plain_progress_intervals_grow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("training", 100) as advance:
        for second in range(100):
            now = float(second)
            advance(1, "loss 2")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training   3%, 1:37 left  loss 2"
    assert 4 <= len(lines) <= 6


def test_eta_uses_the_pace_after_the_first_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first report of a resumed run covers all earlier work; that of a new run comes late."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    for first in (50, 0):
        now = 0.0
        with console.progress("training", 100) as advance:
            for second, part in ((20, first), (30, 10), (50, 20)):
                now = float(second)
                advance(part)
    assert capsys.readouterr().err.splitlines() == [
        "training  50%",
        "training  60%, 0:40 left",
        "training  80%, 0:20 left",
        "training   0%",
        "training  10%, 1:30 left",
        "training  30%, 1:10 left",
    ]


@pytest.mark.parametrize("value", [2.5, None])
def test_plot_of_any_context_curve(value: float | None) -> None:
    point = {"bits_per_token": value, "ci95": value and [value - 0.1, value + 0.1]}
    curve = {
        "contexts": [{"context": n, **point} for n in (0, 1, 2)],
        "positions": [{"first": n, "last": n, **point} for n in (0, 1)],
    }
    assert context_png(curve, "a").startswith(b"\x89PNG\r\n\x1a\n")
