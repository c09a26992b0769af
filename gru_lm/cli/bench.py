"""`gru-lm bench`: training and evaluation speed of each cell on this machine.

Options and printing only; commands/bench.py does the measuring.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.errors import UsageError
from gru_lm.signals import Stop, never, watch_signals

if TYPE_CHECKING:
    from gru_lm.commands.bench import Rate, Speed

SECONDS = 30
BASELINE = "lstm"
BUSY = 0.2  # spread above which other programs are probably using the machine


def bench(
    cells: Sequence[str] | None = None,
    widths: Sequence[int] | None = None,
    *,
    seconds: float = SECONDS,
    started: float | None = None,
    threads: int | None = None,
    device: str = "auto",
    stop: Stop = never,
) -> dict[str, Any]:
    """Measure tokens per second; return the object that `bench --json` prints.

    By default `cells` is all cells and `widths` a few common ones. Takes about `seconds` from `started`
    (monotonic clock). `stop` is polled and raises Stopped. Raises UsageError for invalid options and
    EnvironmentProblem for an unavailable device.
    """
    started = time.monotonic() if started is None else started
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds must be more than 0, not {seconds:g}", hint="--seconds 30")
    from gru_lm.commands import bench as timing
    from gru_lm.model.cells import CELLS
    from gru_lm.model.devices import choose_backend, set_up
    from gru_lm.model.native import build
    from gru_lm.reporting import console

    where = set_up(device, threads=threads, stop=stop)
    subjects = timing.subjects(cells or tuple(CELLS), widths or timing.WIDTHS[where.type], where)
    if where.type == "cpu" and (why := build.problem()):
        console.note(f"C kernels not available, using PyTorch instead: {why}")
    backend = choose_backend(where)
    machine = timing.machine(where, backend)
    plan = subjects[0].plan
    console.note("machine: {processor}; {device}, {threads} threads".format(**machine))
    console.note(
        f"model: characters, {plan.layers} layer{'s' if plan.layers > 1 else ''}, "
        f"{plan.batch} streams x {plan.bptt} steps"
    )
    with console.progress("warming up", len(subjects)) as advance:
        works = timing.warm_up(subjects, device=where, backend=backend, stop=stop, progress=advance)
    with console.progress("measuring", 1.0) as advance:
        speeds = timing.measure(works, until=started + seconds, stop=stop, progress=advance)
    return {
        **machine,
        "vocab_size": timing.VOCABULARY,
        "precision": plan.precision,
        "rounds": len(speeds[0].train.rounds),
        "seconds": round(time.monotonic() - started, 3),
        "results": [_row(each, _baseline(each, speeds)) for each in speeds],
    }


def _baseline(speed: Speed, speeds: Sequence[Speed]) -> Speed | None:
    """The LSTM of the same width, if measured."""
    width = speed.subject.config.width
    configs = ((each, each.subject.config) for each in speeds)
    return next((s for s, c in configs if (c.cell, c.width) == (BASELINE, width)), None)


def _row(speed: Speed, lstm: Speed | None) -> dict[str, Any]:
    plan = speed.subject.plan
    return {
        "cell": plan.cell,
        "width": plan.width,
        "layers": plan.layers,
        "embed": plan.embed,
        "batch": plan.batch,
        "bptt": plan.bptt,
        **_figures("train", speed.train, lstm.train if lstm else None),
        **_figures("eval", speed.evaluation, lstm.evaluation if lstm else None),
    }


def _figures(kind: str, rate: Rate, lstm: Rate | None) -> dict[str, Any]:
    return {
        f"{kind}_tokens_per_second": round(rate.median, 1),
        f"{kind}_quartiles": [round(each, 1) for each in rate.quartiles],
        f"{kind}_over_lstm": round(rate.over(lstm), 3) if lstm else None,
    }


def bench_cli(
    context: typer.Context,
    cells: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Cells to measure.", show_default="all"),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            metavar="H,...", help="Hidden units in each layer.", show_default="three common widths"
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Approximate wall time of the whole command.")
    ] = SECONDS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:I.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the speed of each cell on this machine, in tokens per second.

    Times whole training steps on characters, and the forward pass of validation.
    Cells are measured in turn over several rounds; the table shows medians. For
    reliable figures, close other programs.
    """
    from gru_lm.reporting import console

    with watch_signals() as flag:
        result = bench(
            _names(cells),
            _widths(width),
            seconds=seconds,
            started=context.obj,
            threads=threads,
            device=device,
            stop=flag.check,
        )
    if as_json:
        console.result_json(result)
    else:
        _print_result(result)


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",")]


def _widths(given: str | None) -> list[int] | None:
    try:
        return None if given is None else [int(width) for width in given.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--width {given}: expected whole numbers separated by commas",
            hint="--width 256,512",
        ) from error


def _print_result(result: dict[str, Any]) -> None:
    from gru_lm.reporting import console

    rows, spreads, results = [], [], result["results"]
    ratios = results[0]["train_over_lstm"] is not None
    headers = ["cell", "width", "train tokens/s", "train/lstm", "eval tokens/s", "eval/lstm", "±"]
    for each in results:
        row = [each["cell"], str(each["width"])]
        for kind in ("train", "eval"):
            row.append(f"{each[f'{kind}_tokens_per_second']:,.0f}")
            if ratios:
                row.append(f"{each[f'{kind}_over_lstm']:.2f}")
        spreads.append(max(_spread(each, "train"), _spread(each, "eval")))
        rows.append([*row, f"{spreads[-1]:.0%}"])
    console.table([name for name in headers if ratios or "/lstm" not in name], rows)
    console.note(
        f"medians of {result['rounds']} rounds ± half the interquartile range; "
        f"{result['seconds']:.0f} s in total"
    )
    if statistics.median(spreads) > BUSY:
        console.warn("speeds vary widely between rounds: are other programs using this machine?")
    console.note(_summary(results))
    width = max(each["width"] for each in results)
    console.note(f"next: gru-lm train TEXT --cell {results[0]['cell']} --width {width}")


def _spread(each: dict[str, Any], kind: str) -> float:
    """Half the interquartile range, relative to the median."""
    low, high = each[f"{kind}_quartiles"]
    return float(high - low) / 2 / float(each[f"{kind}_tokens_per_second"])


def _summary(results: Sequence[dict[str, Any]]) -> str:
    """A sentence on the fastest cells in training at the largest width, within the spread."""
    width = max(each["width"] for each in results)
    ranking = sorted(
        (each for each in results if each["width"] == width),
        key=lambda each: -float(each["train_tokens_per_second"]),
    )
    best, speed = ranking[0], "train_tokens_per_second"
    threshold = best[speed] * (1 - _spread(best, "train"))
    fastest = [
        each["cell"] for each in ranking if each[speed] * (1 + _spread(each, "train")) >= threshold
    ]
    if len(fastest) > 1:
        text = f"{', '.join(fastest[:-1])} and {fastest[-1]} train about equally fast"
    else:
        text = f"{best['cell']} trains {'fastest' if len(ranking) > 1 else ''}".rstrip()
    text = f"At width {width}, {text} here: {best[speed]:,.0f} tokens/s"
    ratios = [
        f"{each['cell']} {each['train_over_lstm']:.2f} x lstm"
        for each in ranking
        if each["train_over_lstm"] and (each is best or each["cell"] == "gru")
    ]
    return text + (f" ({', '.join(ratios)})." if ratios and BASELINE not in fastest else ".")
