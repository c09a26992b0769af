"""A run from its settings to its end: begun or gone on with, trained, measured, plotted, summed up.

Prepares (prepare.py, resume.py), trains (fit.py) and leaves the run complete. Plain functions of
plain types: the command, a comparison and notebooks call them alike. Prints no result.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.commands.load import recorded
from gru_lm.commands.train.clock import Spent
from gru_lm.commands.train.fit import Trainer
from gru_lm.commands.train.prepare import Prepared, prepare
from gru_lm.commands.train.resume import reopen
from gru_lm.config import Settings
from gru_lm.errors import BudgetError, DivergedError, Stopped
from gru_lm.layout import LOSS, PIPED_TEXT, START, TOKENIZER, step_path
from gru_lm.planning.forecast import Forecast
from gru_lm.planning.model import DEFAULT_CELL, plan_budget, plan_like
from gru_lm.reporting import console
from gru_lm.reporting.plots import loss_png
from gru_lm.signals import Stop, never
from gru_lm.text.overlap import LEAST
from gru_lm.training import directory as run_directory
from gru_lm.training import reports
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.directory import Run
from gru_lm.training.loop import TrainState
from gru_lm.training.state import environment


def train(
    config: Settings,
    *,
    out: Path | None = None,
    started: float | None = None,
    with_test: bool = True,
    stop: Stop = never,
) -> dict[str, Any]:
    """Train a new run; returns what `train --json` prints, of the test text only `with_test`.

    `out` is the run directory (None: runs/<cell>-<n>), `started` the start of a budget in minutes on
    the monotonic clock. `stop` is polled and raises Stopped. What a user can mend is raised as a
    GruLmError. A run that never got to its first checkpoint leaves nothing behind.
    """
    started = time.monotonic() if started is None else started
    recorded(config)  # what config.toml could not hold is refused before any time is spent
    config, source = _begin(config)

    run = Run.create(out, config.cell or DEFAULT_CELL)
    try:
        if config.reads_stdin():
            run.made.append(run.text)
        prepared = prepare(
            config, stdin=run.text, source=source, started=started, with_test=with_test, stop=stop
        )
        run.keep = config.keep
        prepared = _with_copies(run, prepared, source)
        run.write_settings(recorded(prepared.settings))
        console.note(f"run: {run.directory} (Ctrl-C saves)")
        state = prepared.state(source)
        source = None  # its weights are no longer needed
        return _fit(run, prepared, state, with_test=with_test, stop=stop)
    except BudgetError:
        step_path(run.directory, 0).unlink(missing_ok=True)  # of an untrained model
        raise
    finally:
        run.discard()
        run.close()


def _begin(config: Settings) -> tuple[Settings, Checkpoint | None]:
    """Settings with a budget and, where a run is named to start from, its shape; and its checkpoint."""

    config = plan_budget(config)
    if config.start_from is None:
        return config, None
    source = run_directory.find(Path(config.start_from), console.warn)
    return plan_like(config, source.meta["model"]), source


def _with_copies(run: Run, prepared: Prepared, source: Checkpoint | None) -> Prepared:
    """`prepared` whose settings name the run's own copies of a given tokenizer and of `source`.

    So config.toml gives the same run again, whatever becomes of the files that were named.
    """
    directory = run.directory.absolute()
    named: dict[str, Any] = {}
    if prepared.settings.tokenizer_file:
        run.made.append(directory / TOKENIZER)
        named["tokenizer"] = str(directory / TOKENIZER)
        atomic.write_bytes(directory / TOKENIZER, prepared.data.tokenizer.data)
    if source:
        run.made.append(directory / START)
        named["start_from"] = str(directory / START)
        atomic.link(source.path.resolve(), directory / START)
        if (directory / START).read_bytes() != source.data:  # replaced since it was read
            atomic.write_bytes(directory / START, source.data)
    return dataclasses.replace(prepared, settings=dataclasses.replace(prepared.settings, **named))


def resume(
    directory: Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    started: float | None = None,
    with_test: bool = True,
    stop: Stop = never,
    places: Mapping[str, Any] | None = None,
    **budget: float,
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint; returns what `train --json` prints.

    The settings and the text are those that the run recorded; only threads and device may differ, and
    the `places` (any of config.PLACES) where the same text lies now, which are recorded. A
    `budget` (any of config.BUDGETS) starts another leg: it counts from here, and the learning rate
    rises and falls once more. Without one the run's newest leg goes on.
    """

    started = time.monotonic() if started is None else started
    run = Run.reopen(directory)
    try:
        prepared, state = reopen(
            run,
            places=places or {},
            budget=budget,
            threads=threads,
            device=device,
            spent=Spent(started),
            with_test=with_test,
            stop=stop,
        )
        begun = state.step
        result = _fit(run, prepared, state, with_test=with_test, stop=stop)
        if state.step == begun and not budget:
            more = f"gru-lm train --resume {directory} --minutes 5"
            console.note(f"the run had ended; to train it for longer: {more}")
        return result
    finally:
        run.close()


def dry_run(
    config: Settings,
    *,
    started: float | None = None,
    stop: Stop = never,
) -> tuple[Settings, Forecast]:
    """The complete settings that `train` would use, and what it would come to.

    Nothing but the token cache is written.
    """
    started = time.monotonic() if started is None else started
    config, source = _begin(config)

    with tempfile.TemporaryDirectory() as folder:
        stdin = Path(folder) / PIPED_TEXT
        prepared = prepare(
            config, stdin=stdin, source=source, started=started, with_test=True, stop=stop
        )
    assert prepared.forecast is not None
    return prepared.settings, prepared.forecast


def _fit(
    run: Run,
    prepared: Prepared,
    state: TrainState,
    *,
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
        spent=prepared.spent,
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
        if expected and (metrics := reports.metrics(run.directory)):
            title = f"{prepared.plan.cell}, {state.model.parameter_count():,} parameters"
            atomic.write_bytes(run.directory / LOSS, loss_png(metrics, title))
    return trainer.result(ended)
