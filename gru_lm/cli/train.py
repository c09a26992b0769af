"""`gru-lm train`: train a run on text.

Options and printing; commands/train/ does the work. Most options are the fields of config.Settings.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.cli.options import refuse_ignored, with_settings
from gru_lm.config import BUDGETS, PLACES, Settings
from gru_lm.config_layers import parse_set, read_toml, settings
from gru_lm.errors import Stopped, UsageError
from gru_lm.layout import TOML_MARK
from gru_lm.signals import watch_signals

if TYPE_CHECKING:
    from gru_lm.planning.forecast import Forecast

# Options allowed with --resume.
RESUMABLE = ("threads", "device", *PLACES, *BUDGETS)


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
            help="Resume an interrupted run; with a budget such as --minutes, train for longer with a "
            "new learning-rate schedule. TEXT, --valid and --test give the new location of moved texts.",
        ),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from the weights and the tokenizer of another run.",
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

    started: float = context.obj  # a budget in minutes starts with the command
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
                        f"--resume keeps the run's own settings and cannot be combined with --{name}",
                        why="allowed: --threads, --device, the new location of a text (TEXT, --valid, "
                        "--test) and a budget (--minutes M)",
                        hint=f"gru-lm train --resume {resume_run}",
                    )
                places = {name: given.pop(name) for name in PLACES if name in given}
                result = resume(
                    resume_run, started=started, stop=flag.check, places=places, **given
                )
            else:
                if from_run:
                    given["start_from"] = str(from_run)
                layers = [_read(config) if config else {}, parse_set(set_values or ()), given]
                chosen = settings(*layers)
                refuse_ignored(chosen, layers)
                if print_config and only_plan:
                    raise UsageError(
                        "--print-config cannot be combined with --dry-run",
                        why="it prints the settings as given",
                        hint="--dry-run prints the complete settings",
                    )
                if print_config or only_plan:
                    expected = None
                    if only_plan:
                        chosen, expected = dry_run(chosen, started=started, stop=flag.check)
                    _print_settings(chosen, expected, as_json)
                    return
                result = train(chosen, out=out, started=started, stop=flag.check)
        except Stopped as error:
            if as_json and error.result:
                console.result_json(error.result)
            raise
    if as_json:
        console.result_json(result)
    else:
        _print_result(result)


def _read(config: Path) -> dict[str, Any]:
    """Read a settings file. In that of a run on piped-in text, "-" becomes the run's copy of it."""
    from gru_lm.layout import CONFIG, PIPED_TEXT, holds_run

    values = read_toml(config)
    if values.get("text") == ["-"] and config.name == CONFIG and holds_run(config.parent):
        values["text"] = [str(config.parent / PIPED_TEXT)]
    return values


def _print_settings(chosen: Settings, expected: Forecast | None, as_json: bool) -> None:
    """Print the settings as TOML, or as JSON together with the forecast."""
    import tomli_w

    from gru_lm.reporting import console

    if as_json:
        forecast = {"forecast": dataclasses.asdict(expected)} if expected else {}
        console.result_json(chosen.given() | forecast)
    else:
        console.result((TOML_MARK + tomli_w.dumps(chosen.given())).rstrip("\n"))


def _print_result(result: dict[str, Any]) -> None:
    from gru_lm.reporting import console

    for name, label in (("valid", "held out"), ("test", "test")):
        if figures := result.get(name):
            console.result(
                f"{label}: {figures['bits_per_byte']:.4f} bits per byte, "
                f"{figures['nats_per_token']:.4f} nats per token, "
                f"perplexity {figures['perplexity'] or float('inf'):.2f}"
            )
    console.result(
        f"{result['steps']:,} steps, {result['tokens']:,} tokens in {result['seconds']:.0f} s "
        f"({result['tokens_per_second']:,.0f} tokens/s), {result['parameters']:,} parameters"
    )
    console.result(f"run: {result['run']}")
    more = " --samples 20 --novel" if result["valid"] and "records" in result["valid"] else ""
    console.note(
        "next: gru-lm sample {run}{0}    or: gru-lm eval {run} FILE".format(more, **result)
    )
