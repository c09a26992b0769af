"""Train a new run or resume one: prepare, train, measure, plot, report.

Combines preparation (prepare.py, resume.py) and training (fit.py). Plain functions for the command, for
comparisons and for notebooks. Prints no results.
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
from gru_lm.commands.train.lists import compare_losses, remember
from gru_lm.commands.train.prepare import Prepared, prepare
from gru_lm.commands.train.resume import reopen
from gru_lm.config import Settings
from gru_lm.errors import BudgetError, DivergedError, Stopped
from gru_lm.layout import LOSS, PIPED_TEXT, RECORDS, START, TOKENIZER, step_path
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
    """Train a new run; returns the result of `train --json`.

    `out`: run directory (None: runs/<cell>-<n>). `started`: start of a budget in minutes (monotonic
    clock). `with_test`: also measure the test text. `stop` is polled and raises Stopped. Raises a
    GruLmError for user errors. A run without a checkpoint is removed.
    """
    started = time.monotonic() if started is None else started
    recorded(config)  # raises early if config.toml cannot represent the settings
    config, source = _begin(config)

    run = Run.create(out, config.cell or DEFAULT_CELL)
    try:
        if config.reads_stdin():
            run.made.append(run.text)
        prepared = prepare(
            config, stdin=run.text, source=source, started=started, with_test=with_test, stop=stop
        )
        run.keep = config.keep
        run.made.append(run.directory / RECORDS)
        remember(run.directory, prepared.data.texts)
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
    """The settings with a budget and, with --from, the shape of that run; and its checkpoint."""
    config = plan_budget(config)
    if config.start_from is None:
        return config, None
    source = run_directory.find(Path(config.start_from), console.warn)
    return plan_like(config, source.meta["model"]), source


def _with_copies(run: Run, prepared: Prepared, source: Checkpoint | None) -> Prepared:
    """Copy a given tokenizer and `source` into the run, and name the copies in the settings.

    This makes config.toml independent of the original files.
    """
    directory = run.directory.absolute()
    copies: dict[str, Any] = {}
    if prepared.settings.tokenizer_file:
        run.made.append(directory / TOKENIZER)
        copies["tokenizer"] = str(directory / TOKENIZER)
        atomic.write_bytes(directory / TOKENIZER, prepared.data.tokenizer.data)
    if source:
        run.made.append(directory / START)
        copies["start_from"] = str(directory / START)
        atomic.link(source.path.resolve(), directory / START)
        if (directory / START).read_bytes() != source.data:  # the file has changed since
            atomic.write_bytes(directory / START, source.data)
    return dataclasses.replace(prepared, settings=dataclasses.replace(prepared.settings, **copies))


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
    """Resume a run from its newest intact checkpoint; returns the result of `train --json`.

    Settings and text are those of the run, except for threads, device and `places` (any of
    config.PLACES), the new location of the same text, which is recorded. A `budget` (any of
    config.BUDGETS) starts a new leg with its own learning-rate schedule; without one, the last leg is
    resumed. Raises as `train` does.
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
        first_step = state.step
        remember(run.directory, prepared.data.texts)
        result = _fit(run, prepared, state, with_test=with_test, stop=stop)
        if state.step == first_step and not budget:
            more = f"gru-lm train --resume {directory} --minutes 5"
            console.note(f"the run was complete; to train it for longer: {more}")
        return result
    finally:
        run.close()


def dry_run(
    config: Settings,
    *,
    started: float | None = None,
    stop: Stop = never,
) -> tuple[Settings, Forecast]:
    """The complete settings that `train` would use, and a forecast. Writes only the token cache."""
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
    """Train, measure and plot; returns the result."""
    data = prepared.data.with_lines(stop=stop)
    overlap = data.lines["valid"].part_in(data.lines["train"])
    if prepared.settings.valid and overlap >= LEAST and not data.is_list:  # lists: describe()
        console.warn(f"{overlap:.0%} of the lines of the held-out text are in the training text")
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
        if data.is_list and (valid := trainer.result(ended)["valid"]):
            held_out = valid["nats_per_token"]
            compare_losses(trainer.best_model(), data, held_out=held_out, stop=stop)
        minutes, epochs = prepared.settings.minutes, prepared.settings.epochs
        if minutes and epochs and ended == "budget" and trainer.pace.elapsed() < 54 * minutes:
            passes = "1 pass" if epochs == 1 else f"{epochs:g} passes"
            console.note(f"stopped before {minutes:g} minutes, after {passes} over the text")
    except Stopped as error:
        error.message = f"stopped by a signal after step {state.step:,}; saved in {run.directory}"
        error.hint = f"to resume: gru-lm train --resume {run.directory}"
        error.result = trainer.result("signal")
        raise
    finally:
        # After other errors, a plot could mask a full disk or delay a second Ctrl-C.
        expected = isinstance(sys.exception(), Stopped | DivergedError | None)
        if expected and (metrics := reports.metrics(run.directory)):
            title = f"{prepared.plan.cell}, {state.model.parameter_count():,} parameters"
            atomic.write_bytes(run.directory / LOSS, loss_png(metrics, title))
    return trainer.result(ended)
