"""A run from its settings to its end: begun or gone on with, trained, measured, plotted, summed up.

Prepares (prepare.py, resume.py), trains (fit.py) and leaves the run complete. Plain functions of
plain types: the command, a comparison and notebooks call them alike. Prints no result.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.commands.train.fit import Trainer
from gru_lm.commands.train.prepare import Prepared, prepare
from gru_lm.commands.train.resume import reopen
from gru_lm.config import Settings
from gru_lm.errors import DivergedError, Stopped
from gru_lm.layout import LOSS, PIPED_TEXT
from gru_lm.planning.forecast import Forecast
from gru_lm.planning.model import DEFAULT_CELL, plan_budget, plan_like
from gru_lm.reporting import console
from gru_lm.reporting.plots import loss_png
from gru_lm.signals import Stop, never
from gru_lm.text.overlap import LEAST
from gru_lm.training import directory as run_directory
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.directory import Run
from gru_lm.training.loop import TrainState
from gru_lm.training.state import environment


def train(
    chosen: Settings,
    *,
    out: Path | None = None,
    start_from: Path | None = None,
    started: float | None = None,
    with_test: bool = True,
    stop: Stop = never,
) -> dict[str, Any]:
    """Train a new run; returns what `train --json` prints, of the test text only `with_test`.

    `out` is the run directory (None: runs/<cell>-<n>), `start_from` a run whose weights and tokenizer
    to begin with, `started` the start of a budget in minutes on the monotonic clock. `stop` is polled
    and raises Stopped. What a user can mend is raised as a GruLmError. A run that never got to its
    first checkpoint leaves nothing behind.
    """
    started = time.monotonic() if started is None else started
    chosen, source = _begin(chosen, start_from)

    run = Run.create(out, chosen.cell or DEFAULT_CELL)
    try:
        prepared = prepare(chosen, stdin=run.text, source=source, started=started, stop=stop)
        run.keep = chosen.keep
        run.write_settings(recorded(prepared.settings))
        console.note(f"run: {run.directory} (Ctrl-C saves)")
        state = prepared.state(source)
        source = None  # its weights are no longer needed
        return _fit(run, prepared, state, started=started, with_test=with_test, stop=stop)
    finally:
        run.discard()
        run.close()


def _begin(chosen: Settings, start_from: Path | None) -> tuple[Settings, Checkpoint | None]:
    """Settings with a budget and, where a run is named to start from, its shape; and its checkpoint."""

    chosen = plan_budget(chosen)
    if start_from is None:
        return chosen, None
    source = run_directory.find(start_from, console.warn)
    return plan_like(chosen, source.meta["model"]), source


def resume(
    directory: Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    started: float | None = None,
    with_test: bool = True,
    stop: Stop = never,
    **budget: float,
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint; returns what `train --json` prints.

    The settings and the text are those that the run recorded; only threads and device may differ. A
    `budget` (any of config.BUDGETS) starts another leg: it counts from here, and the learning rate
    rises and falls once more. Without one the run's newest leg goes on.
    """

    started = time.monotonic() if started is None else started
    run = Run.reopen(directory)
    try:
        prepared, state = reopen(run, budget=budget, threads=threads, device=device, stop=stop)
        begun = state.step
        result = _fit(run, prepared, state, started=started, with_test=with_test, stop=stop)
        if state.step == begun and not budget:
            more = f"gru-lm train --resume {directory} --minutes 5"
            console.note(f"the run had ended; to train it for longer: {more}")
        return result
    finally:
        run.close()


def dry_run(
    chosen: Settings,
    *,
    start_from: Path | None = None,
    started: float | None = None,
    stop: Stop = never,
) -> tuple[Settings, Forecast]:
    """The complete settings that `train` would use, and what it would come to.

    Nothing but the token cache is written.
    """
    started = time.monotonic() if started is None else started
    chosen, source = _begin(chosen, start_from)

    with tempfile.TemporaryDirectory() as folder:
        stdin = Path(folder) / PIPED_TEXT
        prepared = prepare(chosen, stdin=stdin, source=source, started=started, stop=stop)
    assert prepared.forecast is not None
    planned = prepared.settings
    if source or (chosen.tokenizer or "").endswith(".model"):  # which has its tokenizer ready
        planned = dataclasses.replace(planned, tokenizer=chosen.tokenizer, vocab_size=None)
    return planned, prepared.forecast


def _fit(
    run: Run,
    prepared: Prepared,
    state: TrainState,
    *,
    started: float,
    with_test: bool,
    stop: Stop,
) -> dict[str, Any]:
    """Train, and leave the run complete: measured, plotted, summed up."""
    data = prepared.data.with_lines(stop=stop)
    same = data.lines["valid"].part_in(data.lines["train"])
    if prepared.settings.valid and same >= LEAST:
        console.warn(f"{same:.0%} of the lines of the held-out text are in the training text")
    if not with_test:
        data = dataclasses.replace(data, test=None)

    trainer = Trainer(
        run=run,
        settings=prepared.settings,
        plan=prepared.plan,
        data=data,
        state=state,
        environment=environment(prepared.device, prepared.backend),
        started=started,
        stop=stop,
    )
    try:
        ended = trainer.fit()
        trainer.measure_test()
        minutes, epochs = prepared.settings.minutes, prepared.settings.epochs
        if minutes and epochs and ended == "budget" and trainer.pace.elapsed() < 54 * minutes:
            passes = "1 pass" if epochs == 1 else f"{epochs:g} passes"
            console.note(f"ended before its {minutes:g} minutes, after {passes} over the text")
    except Stopped as error:
        error.message = f"stopped by a signal after step {state.step:,}; saved in {run.directory}"
        error.hint = f"to go on: gru-lm train --resume {run.directory}"
        error.result = trainer.result("signal")
        raise
    finally:
        # A plot would hide a full disk, and hold up a second Ctrl-C.
        expected = isinstance(sys.exception(), Stopped | DivergedError | None)
        if expected and (metrics := run_directory.metrics(run.directory)):
            title = f"{prepared.plan.cell}, {state.model.parameter_count():,} parameters"
            atomic.write_bytes(run.directory / LOSS, loss_png(metrics, title))
    return trainer.result(ended)


def recorded(chosen: Settings) -> dict[str, Any]:
    """The settings with paths made absolute: a run can be resumed from anywhere."""

    def absolute(spec: str) -> str:
        if spec == "-" or spec.startswith("@") or Path(spec).is_absolute():
            return spec
        here = str(Path.cwd())
        # A glob stays one, but nothing in this folder's own name is to become part of it.
        magic = glob.has_magic(spec) and not os.path.lexists(spec)
        return str(Path(glob.escape(here) if magic else here) / spec)

    values = chosen.given() | {"text": [absolute(spec) for spec in chosen.text]}
    for name in ("valid", "test"):
        if name in values:
            values[name] = absolute(values[name])
    return values
