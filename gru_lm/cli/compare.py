"""`gru-lm compare`: compare cells by training them, or compare two finished models.

Options and printing; commands/compare/ does the work.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer

from gru_lm.cli.options import refuse_ignored, with_settings
from gru_lm.config_layers import parse_set, read_toml, settings
from gru_lm.errors import UsageError
from gru_lm.signals import watch_signals

# Settings that also apply to finished models.
OF_MODELS = ("encoding", "threads", "device")
RUN_COLUMNS = (
    ("seed", "seed", ""),
    ("bits_per_byte", "bits per byte", ".4f"),
    ("perplexity", "perplexity", ",.2f"),
    ("parameters", "parameters", ","),
    ("width", "width", ","),
    ("tokens", "tokens", ","),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("seconds", "seconds", ",.1f"),
)
MODEL_COLUMNS = (
    ("bits_per_byte", "bits per byte", ".4f"),
    ("perplexity", "perplexity", ",.2f"),
    ("tokenizer", "tokenizer", ""),
    ("parameters", "parameters", ","),
    ("width", "width", ","),
)


@with_settings(
    minutes="Minutes per run (default: 1); all cells train for the steps of the slowest in that time.",
    split="Shares of TEXT for training, validation and testing (default: 0.8,0.1,0.1).",
    valid="Validation text, instead of a part of TEXT.",
    test="Test text, on which the cells are compared (default: the last tenth of TEXT; of a list, a "
    "random tenth).",
    width="Hidden units per layer of the first cell, in the order gru, gru-before, lstm, "
    "lstm-thread, rnn; the others get matching widths.",
    cell=None,
    seed=None,
)
def compare_cli(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT|RUN",
            help="Text to train on, as for train; or, with --on, two finished runs.",
            show_default=False,
        ),
    ] = None,
    cells: Annotated[
        str | None, typer.Option(metavar="A,B[,...]", help="Cells to compare (default: gru,lstm).")
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="parameters|width|arithmetic|time",
            help="The quantity held equal between the cells (default: parameters).",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Runs of each cell; a verdict needs at least 3 (default: 3)."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Text on which to compare two finished runs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory; an interrupted comparison resumes (default: compare-<n>)."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of all runs, from a file.")
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated."),
    ] = None,
    fail_if_worse: Annotated[
        bool,
        typer.Option(
            "--fail-if-worse", help="Exit with 1 if the first is significantly worse than another."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end.")
    ] = False,
    **flags: Any,
) -> None:
    """Compare cells on TEXT, or two finished runs: RUN_A RUN_B --on FILE.

    Trains every cell with every seed, one minute per run by default, and measures all runs on the same
    test text. All cells share one plan, except for a matching width and the planner's learning rate
    for the cell (with --match time, each has its own plan). The verdict is one sentence with an interval
    over seeds and text. Ctrl-C saves; the same command, or --out DIR alone, resumes.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    own: dict[str, Any] = {"match": match, "seeds": seeds}
    own = {name: value for name, value in own.items() if value is not None}
    if cells is not None:
        own["cells"] = [name.strip() for name in cells.split(",")]
    if on:
        others = [*own, *(name for name in given if name not in OF_MODELS)]
        if others or config or set_values or len(text or ()) != 2:
            excluded = f", not --{others[0].replace('_', '-')}" if others else ""
            raise UsageError(
                f"--on takes two finished runs{excluded}",
                hint=f"gru-lm compare RUN_A RUN_B --on {on[0]}",
            )
    with watch_signals() as flag:
        if on and text:
            from gru_lm.commands.compare.models import compare_models

            models = (Path(text[0]), Path(text[1]))
            result = compare_models(models, on, out=out, stop=flag.check, **given)
        else:
            layers = [read_toml(config) if config else {}, parse_set(set_values or ()), given]
            asked = own | _settings(layers, text)
            from gru_lm.commands.compare.run import compare_cells

            result = compare_cells(asked, out=out, stop=flag.check)
    if as_json:
        from gru_lm.reporting import console

        console.result_json(result)
    else:
        _print_result(result)
    first = own["cells"][0] if "cells" in own else result["difference"]["a"]
    if fail_if_worse and any(
        first in (each["a"], each["b"]) and each["better"] not in (first, None)
        for each in result["differences"]
    ):
        raise typer.Exit(1)


def _settings(layers: list[dict[str, Any]], text: list[str] | None) -> dict[str, Any]:
    """The given settings by name, validated, with absolute paths, to resume from any directory."""
    from gru_lm.commands.load import recorded
    from gru_lm.layout import holds_checkpoint

    if text and all(holds_checkpoint(Path(spec)) for spec in text):
        raise UsageError(
            "no text to compare these runs on",
            hint=f"gru-lm compare {' '.join(text)} --on FILE",
        )
    names = {name.replace("-", "_") for layer in layers for name in layer}
    config = settings(*layers, {"text": text})
    refuse_ignored(config, layers)
    values = recorded(config).given()
    if (tokenizer := config.tokenizer or "").endswith(".model"):
        values["tokenizer"] = str(Path(tokenizer).absolute())
    return {name: values[name] for name in names | ({"text"} if text else set())}


def _print_result(result: dict[str, Any]) -> None:
    from gru_lm.reporting import console
    from gru_lm.reporting.figures import differences

    if "runs" in result:
        rows = [_cell(cell, result["runs"]) for cell in result["cells"]]
        headers = ["cell", "runs", "parameters", "width", "tokens/s", "bits per byte"]
        console.table([*headers, "perplexity"], rows)
        rows = [_row(run["cell"], run, RUN_COLUMNS) for run in result["runs"]]
        console.table(["cell", *(label for _, label, _ in RUN_COLUMNS)], rows)
    else:
        rows = [_row(result[side]["name"], result[side], MODEL_COLUMNS) for side in ("a", "b")]
        console.table(["run", *(label for _, label, _ in MODEL_COLUMNS)], rows)
    interval, pairs = differences(result["differences"])
    rows = [[cell or "-" for cell in row] for row in pairs]
    console.table(["difference", "bits per byte", interval], rows)
    for caveat in result["caveats"]:
        console.warn(caveat)
    for verdict in dict.fromkeys(each["verdict"] for each in result["differences"]):
        console.result(verdict)
    if result["report"]:
        console.note(f"measured on {result['on']}; report: {result['report']}")


def _cell(cell: str, runs: list[dict[str, Any]]) -> list[str]:
    """The row of a cell, from all its runs."""
    import math

    from gru_lm.evaluation.statistics import RESOLUTION, rounded

    own = [run for run in runs if run["cell"] == cell]

    def all_of(name: str) -> list[float]:
        return [run[name] for run in own if run[name] is not None]

    bits, nats, speed = (
        all_of(n) for n in ("bits_per_byte", "nats_per_token", "tokens_per_second")
    )
    shown = "-"
    if len(bits) > 1:
        shown = " ± ".join(rounded(fmean(bits), max(stdev(bits), RESOLUTION)))
    elif bits:
        shown = f"{bits[0]:.4f}"
    # All runs score the same tokens, so the mean is a ratio of sums.
    perplexity = f"{math.exp(fmean(nats)):,.2f}" if nats else "-"
    return [
        cell,
        f"{len(own)}",
        f"{own[0]['parameters']:,}",
        f"{own[0]['width']:,}",
        f"{fmean(speed):,.0f}" if speed else "-",
        shown,
        perplexity,
    ]


def _row(name: str, values: dict[str, Any], columns: Any) -> list[str]:
    shown = (
        "-" if values[key] is None else format(values[key], style) for key, _, style in columns
    )
    return [name, *shown]
