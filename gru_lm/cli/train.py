"""`gru-lm train`: from text to a trained run.

`train` and `resume` prepare (prepare.py), train (trainer.py) and leave the run complete. The options
of `train_cli` are the fields of config.Settings: one place says what can be set.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.cli.options import with_settings
from gru_lm.config import BUDGETS, Settings, parse_set, read_toml, settings
from gru_lm.errors import DivergedError, Stopped, UsageError
from gru_lm.signals import watch_signals

if TYPE_CHECKING:
    from gru_lm.forecast import Forecast
    from gru_lm.prepare import Prepared
    from gru_lm.training.checkpoint import Checkpoint
    from gru_lm.training.loop import TrainState
    from gru_lm.training.runs import Run

# What may be given when a run is resumed: where it is computed, and another budget.
RESUMABLE = ("threads", "device", *BUDGETS)
Stop = Callable[[], None]


def _never() -> None:
    """The default of `stop`: nobody asks us to."""


def train(
    chosen: Settings,
    *,
    out: Path | None = None,
    start_from: Path | None = None,
    started: float | None = None,
    stop: Stop = _never,
) -> dict[str, Any]:
    """Train a new run; returns what `train --json` prints.

    `out` is the run directory (None: runs/<cell>-<n>), `start_from` a run whose weights and tokenizer
    to begin with, `started` the start of a budget in minutes on the monotonic clock. `stop` is polled
    and raises Stopped. What a user can mend is raised as a GruLmError. A run that never got to its
    first checkpoint leaves nothing behind.
    """
    started = time.monotonic() if started is None else started
    chosen, source = _begin(chosen, start_from)
    from gru_lm.prepare import prepare
    from gru_lm.reporting import console
    from gru_lm.training.planner import DEFAULT_CELL
    from gru_lm.training.runs import Run

    run = Run.create(out, chosen.cell or DEFAULT_CELL)
    try:
        prepared = prepare(chosen, stdin=run.text, source=source, started=started, stop=stop)
        run.keep = chosen.keep
        run.write_settings(recorded(prepared.settings))
        console.note(f"run: {run.directory} (Ctrl-C saves)")
        return _fit(run, prepared, prepared.state(), started=started, stop=stop)
    finally:
        run.discard()
        run.close()


def _begin(chosen: Settings, start_from: Path | None) -> tuple[Settings, Checkpoint | None]:
    """Settings with a budget and, where a run is named to start from, its shape; and its checkpoint."""
    from gru_lm.reporting import console
    from gru_lm.training import runs
    from gru_lm.training.planner import plan_budget, plan_like

    chosen = plan_budget(chosen)
    if start_from is None:
        return chosen, None
    source = runs.find(start_from, console.warn)
    return plan_like(chosen, source.meta["model"]), source


def resume(
    directory: Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    started: float | None = None,
    stop: Stop = _never,
    **budget: float,
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint; returns what `train --json` prints.

    The settings and the text are those that the run recorded; only threads and device may differ. A
    `budget` (any of config.BUDGETS) starts another leg: it counts from here, and the learning rate
    rises and falls once more. Without one the run's newest leg goes on.
    """
    from gru_lm.reporting import console
    from gru_lm.resumed import reopen
    from gru_lm.training.runs import Run

    started = time.monotonic() if started is None else started
    run = Run.reopen(directory)
    try:
        prepared, state = reopen(run, budget=budget, threads=threads, device=device, stop=stop)
        begun = state.step
        result = _fit(run, prepared, state, started=started, stop=stop)
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
    stop: Stop = _never,
) -> tuple[Settings, Forecast]:
    """The complete settings that `train` would use, and what it would come to.

    Nothing but the token cache is written.
    """
    started = time.monotonic() if started is None else started
    chosen, source = _begin(chosen, start_from)
    from gru_lm.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        stdin = Path(folder) / "text.txt"
        prepared = prepare(chosen, stdin=stdin, source=source, started=started, stop=stop)
    assert prepared.forecast is not None
    return prepared.settings, prepared.forecast


def _fit(
    run: Run, prepared: Prepared, state: TrainState, *, started: float, stop: Stop
) -> dict[str, Any]:
    """Train, and leave the run complete: measured, plotted, summed up."""
    from gru_lm import atomic
    from gru_lm.reporting.plots import loss_png
    from gru_lm.trainer import Trainer
    from gru_lm.training.state import environment

    trainer = Trainer(
        run=run,
        settings=prepared.settings,
        plan=prepared.plan,
        data=prepared.data,
        state=state,
        environment=environment(prepared.device, prepared.backend),
        started=started,
        stop=stop,
    )
    try:
        ended = trainer.fit()
        trainer.measure_test()
    except Stopped as error:
        error.message = f"stopped by a signal after step {state.step:,}; saved in {run.directory}"
        error.hint = f"to go on: gru-lm train --resume {run.directory}"
        error.result = trainer.result("signal")
        raise
    finally:
        # A plot would hide a full disk, and hold up a second Ctrl-C.
        expected = isinstance(sys.exception(), Stopped | DivergedError | None)
        if expected and (metrics := run.metrics()):
            title = f"{prepared.plan.cell}, {state.model.parameter_count():,} parameters"
            atomic.write_bytes(run.directory / "loss.png", loss_png(metrics, title))
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


@with_settings
def train_cli(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files, folders, globs, - (standard input) or @names of corpora.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory. (default: runs/<cell>-<n>)")
    ] = None,
    resume_run: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with an interrupted run, as it was; only --threads and --device may differ. "
            "With a budget: go on with any run for so long, the learning rate falling once more.",
        ),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN", help="Start from another run's weights and tokenizer."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags are stronger.")
    ] = None,
    set_values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings and leave.")
    ] = False,
    only_plan: Annotated[
        bool, typer.Option("--dry-run", help="Read the text, print the whole plan and leave.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end.")
    ] = False,
    **flags: Any,
) -> None:
    """Train a language model on TEXT.

    Nothing is required: without TEXT it is the documentation of Python's own library (@docstrings),
    without a budget five minutes. What is left open is planned for this text, time and machine, and
    printed. Ctrl-C saves; --resume RUN goes on, and --resume RUN --minutes M for longer.
    """
    from gru_lm.reporting import console

    started: float = context.obj  # a budget in minutes counts from the command's start
    given = {name: value for name, value in flags.items() if value is not None}
    if text:
        given["text"] = tuple(text)
    with watch_signals() as flag:
        try:
            if resume_run:
                refused = [name for name in given if name not in RESUMABLE]
                others = (out, from_run, config, set_values, print_config, only_plan)
                if refused or any(others):
                    name = f"--{refused[0]}" if refused else "others"
                    raise UsageError(
                        f"--resume goes on with the run's own settings, not with {name}",
                        why="only --threads, --device and a budget (--minutes M) go with it",
                        hint=f"gru-lm train --resume {resume_run}",
                    )
                result = resume(resume_run, started=started, stop=flag.check, **given)
            else:
                layers = [read_toml(config) if config else {}, parse_set(set_values or ()), given]
                chosen = settings(*layers)
                if print_config or only_plan:
                    expected = None
                    if only_plan:
                        chosen, expected = dry_run(
                            chosen, start_from=from_run, started=started, stop=flag.check
                        )
                    _print_settings(chosen, expected, as_json)
                    return
                result = train(
                    chosen, out=out, start_from=from_run, started=started, stop=flag.check
                )
        except Stopped as error:
            if as_json and error.result:
                console.result_json(error.result)
            raise
    if as_json:
        console.result_json(result)
    else:
        _print_result(result)


def _print_settings(chosen: Settings, expected: Forecast | None, as_json: bool) -> None:
    """The settings as TOML, or as JSON with what is expected of them beside them."""
    import tomli_w

    from gru_lm.reporting import console

    if as_json:
        forecast = {"forecast": dataclasses.asdict(expected)} if expected else {}
        console.result_json(chosen.given() | forecast)
    else:
        console.result(tomli_w.dumps(chosen.given()).rstrip("\n"))


def _print_result(result: dict[str, Any]) -> None:
    from gru_lm.reporting import console

    for name, what in (("valid", "held out"), ("test", "test")):
        if figures := result.get(name):
            console.result(
                f"{what}: {figures['bits_per_byte']:.4f} bits per byte, "
                f"{figures['nats_per_token']:.4f} nats a token, "
                f"perplexity {figures['perplexity'] or float('inf'):.2f}"
            )
    console.result(
        f"{result['steps']:,} steps, {result['tokens']:,} tokens in {result['seconds']:.0f} s "
        f"({result['tokens_per_second']:,.0f} tokens/s), {result['parameters']:,} parameters"
    )
    console.result(f"run: {result['run']}")
    console.note("next: gru-lm sample {run}    or: gru-lm eval {run} FILE".format(**result))
