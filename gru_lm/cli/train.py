"""`gru-lm train`: from text to a trained run.

Options and printing; commands/train/ does the work. Most options are the fields of config.Settings.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.cli.options import with_settings
from gru_lm.config import BUDGETS, Settings, parse_set, read_toml, settings
from gru_lm.errors import Stopped, UsageError
from gru_lm.signals import watch_signals

if TYPE_CHECKING:
    from gru_lm.planning.forecast import Forecast

# Options that go with --resume.
RESUMABLE = ("threads", "device", *BUDGETS)


@with_settings()
def train_cli(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files, folders, globs, - (standard input) or named corpora (@shakespeare).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory (default: runs/<cell>-<n>).")
    ] = None,
    resume_run: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Resume an interrupted run; with a budget such as --minutes, train a run for longer "
            "with a new learning-rate schedule.",
        ),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Initialise from another run: its weights and its tokenizer.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Settings file; flags take precedence."),
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings as TOML and exit.")
    ] = False,
    only_plan: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the full plan and its forecast, without training."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end.")
    ] = False,
    **flags: Any,
) -> None:
    """Train a language model on TEXT.

    Everything is optional. TEXT defaults to @docstrings, the documentation of Python's standard
    library, and the budget to five minutes. Whatever is not given is planned from the text, the budget
    and the measured speed of this machine, and printed. Ctrl-C saves; --resume RUN continues.
    """
    from gru_lm.commands.train.run import dry_run, resume, train
    from gru_lm.reporting import console

    started: float = context.obj  # a budget in minutes counts from the command's start
    given = {name: value for name, value in flags.items() if value is not None}
    if text:
        given["text"] = tuple(text)
    with watch_signals() as flag:
        try:
            if resume_run:
                others: dict[str, Any] = {"out": out, "from": from_run, "config": config}
                others |= {"set": set_values, "print_config": print_config, "dry_run": only_plan}
                refused = [name for name in given if name not in RESUMABLE]
                refused += [name for name, value in others.items() if value]
                if refused:
                    name = refused[0].replace("_", "-")
                    raise UsageError(
                        "--resume keeps the run's own settings and does not go with "
                        f"{'TEXT' if name == 'text' else f'--{name}'}",
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
    """The settings as TOML, or as JSON together with the forecast."""
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
