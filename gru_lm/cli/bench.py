"""`gru-lm bench`: the speed of each cell on this machine, in training and evaluation.

Options and printing; commands/bench.py measures.
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
YARDSTICK = "lstm"
BUSY = 0.2  # a spread beyond which the machine is likely to do something else too


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
    """Measure tokens a second; returns what `bench --json` prints.

    `cells` and `widths` are all cells and a few widths where they are None. It takes about `seconds`
    from `started` (monotonic clock) on. `stop` is polled and raises Stopped. What a user can mend is
    raised as a GruLmError.
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
    chosen = timing.subjects(cells or tuple(CELLS), widths or timing.WIDTHS[where.type], where)
    if where.type == "cpu" and (why := build.problem()):
        console.note(f"no kernel of our own, PyTorch's instead: {why}")
    backend = choose_backend(where)
    machine = timing.machine(where, backend)
    plan = chosen[0].plan
    console.note("machine: {processor}; {device}, {threads} threads".format(**machine))
    console.note(
        f"model: characters, {plan.layers} layer{'s' if plan.layers > 1 else ''}, "
        f"{plan.batch} streams x {plan.bptt} steps"
    )
    with console.progress("warming up", len(chosen)) as advance:
        works = timing.warm_up(chosen, device=where, backend=backend, stop=stop, progress=advance)
    with console.progress("measuring", 1.0) as advance:
        speeds = timing.measure(works, until=started + seconds, stop=stop, progress=advance)
    return {
        **machine,
        "vocab_size": timing.VOCABULARY,
        "precision": plan.precision,
        "rounds": len(speeds[0].train.rounds),
        "seconds": round(time.monotonic() - started, 3),
        "results": [_described(each, _yardstick(each, speeds)) for each in speeds],
    }


def _yardstick(speed: Speed, speeds: Sequence[Speed]) -> Speed | None:
    """The LSTM of the same width, if it was measured."""
    width = speed.subject.config.width
    configs = ((each, each.subject.config) for each in speeds)
    return next((s for s, c in configs if (c.cell, c.width) == (YARDSTICK, width)), None)


def _described(speed: Speed, lstm: Speed | None) -> dict[str, Any]:
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
    """Measure the speed of each cell on this machine, in tokens a second.

    Times whole training steps on characters, and the forward pass of validation. The cells take turns,
    and medians are shown. Close other programs for reliable figures.
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
            f"--width {given}: not whole numbers with commas between", hint="--width 256,512"
        ) from error


def _print_result(result: dict[str, Any]) -> None:
    from gru_lm.reporting import console

    rows, spreads, found = [], [], result["results"]
    ratios = found[0]["train_over_lstm"] is not None
    headers = ["cell", "width", "train tokens/s", "train/lstm", "eval tokens/s", "eval/lstm", "±"]
    for each in found:
        row = [each["cell"], str(each["width"])]
        for kind in ("train", "eval"):
            row.append(f"{each[f'{kind}_tokens_per_second']:,.0f}")
            if ratios:
                row.append(f"{each[f'{kind}_over_lstm']:.2f}")
        spreads.append(max(_spread(each, "train"), _spread(each, "eval")))
        rows.append([*row, f"{spreads[-1]:.0%}"])
    console.table([name for name in headers if ratios or "/lstm" not in name], rows)
    console.note(
        f"medians of {result['rounds']} rounds, half of which lie within ±; "
        f"{result['seconds']:.0f} s in all"
    )
    if statistics.median(spreads) > BUSY:
        console.warn("the rounds differ widely: is the machine busy with something else?")
    console.note(_meaning(found))
    width = max(each["width"] for each in found)
    console.note(f"next: gru-lm train TEXT --cell {found[0]['cell']} --width {width}")


def _spread(each: dict[str, Any], kind: str) -> float:
    """Half the distance of the quartiles, as a share of the median."""
    low, high = each[f"{kind}_quartiles"]
    return float(high - low) / 2 / float(each[f"{kind}_tokens_per_second"])


def _meaning(found: Sequence[dict[str, Any]]) -> str:
    """One sentence about the widest models: which cell trains fastest, as far as it can be told."""
    width = max(each["width"] for each in found)
    rank = sorted(
        (each for each in found if each["width"] == width),
        key=lambda each: -float(each["train_tokens_per_second"]),
    )
    best, speed = rank[0], "train_tokens_per_second"
    least = best[speed] * (1 - _spread(best, "train"))
    equal = [each["cell"] for each in rank if each[speed] * (1 + _spread(each, "train")) >= least]
    if len(equal) > 1:
        text = f"{', '.join(equal[:-1])} and {equal[-1]} train about equally fast"
    else:
        text = f"{best['cell']} trains {'fastest' if len(rank) > 1 else ''}".rstrip()
    text = f"At width {width}, {text} here: {best[speed]:,.0f} tokens a second"
    ratios = [
        f"{each['cell']} {each['train_over_lstm']:.2f} x lstm"
        for each in rank
        if each["train_over_lstm"] and (each is best or each["cell"] == "gru")
    ]
    return text + (f" ({', '.join(ratios)})." if ratios and YARDSTICK not in equal else ".")
