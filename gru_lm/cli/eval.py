"""`gru-lm eval RUN [FILE ...]`: how well a model predicts texts.

Options and printing; commands/eval/ measures, and evaluation/metrics.py defines the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gru_lm.commands.eval.options import Outputs
from gru_lm.commands.eval.run import evaluate
from gru_lm.errors import UsageError
from gru_lm.evaluation import CONVENTIONS, MODES
from gru_lm.signals import watch_signals

TABLES, BESIDE, ADAPTING = "Tables and pages", "Beside the figures", "Adapting to the text"


def _out(name: str, what: str) -> Any:
    return typer.Option(metavar=name, help=what, rich_help_panel=TABLES)


def eval_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a checkpoint.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Files, folders, globs, - (standard input) or @names of corpora; "
            "without any, the run's own held-out text.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    mode: Annotated[
        str,
        typer.Option(
            metavar="|".join(MODES),
            help="stream: the state is carried through each document. line: it is reset at each "
            "line. columns: as validation while training does it.",
        ),
    ] = "stream",
    encoding: Annotated[str, typer.Option(help="How the files are encoded.")] = "utf-8",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Documents, lines or columns side by side; changes the speed."),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Tokens a pass; changes the speed.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the processor.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:I.")] = "auto",
    per_token: Annotated[
        Path | None, _out("OUT.tsv", "Write surprisal and entropy of every token.")
    ] = None,
    per_word: Annotated[
        Path | None,
        _out("OUT.tsv", "Write the surprisal of every word, as tokenised and corrected."),
    ] = None,
    per_line: Annotated[
        Path | None,
        _out(
            "OUT.tsv", "Write tokens and nats of every line; - answers standard input line by line."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        _out("OUT.html", "Write a page: figures, loss along the text, the text coloured."),
    ] = None,
    context_curve: Annotated[
        Path | None, _out("OUT.png", "Measure and plot the loss against the length of context.")
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="|".join(CONVENTIONS),
            help="Print what that tool would, in its layout.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Uniform, unigram, and the compressors bz2 and lzma on the same text.",
            rich_help_panel=BESIDE,
        ),
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judge minimal pairs: JSON Lines as BLiMP's, a folder or a zip of them.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    interpolate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.arpa",
            help="n-grams, alone and together with a model of words.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    weight: Annotated[
        str,
        typer.Option(
            metavar="W|auto",
            help="Of the n-grams, 0 to 1; auto: what suits the run's own held-out text.",
            rich_help_panel=BESIDE,
        ),
    ] = "auto",
    cache: Annotated[
        bool,
        typer.Option("--cache", help="With the neural cache.", rich_help_panel=ADAPTING),
    ] = False,
    cache_window: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens it remembers. (default: 2000)", rich_help_panel=ADAPTING),
    ] = None,
    cache_theta: Annotated[
        float | None,
        typer.Option(help="How much likeness counts. (default: 0.1)", rich_help_panel=ADAPTING),
    ] = None,
    cache_weight: Annotated[
        float | None,
        typer.Option(help="Its share of the mixture. (default: 0.15)", rich_help_panel=ADAPTING),
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(
            metavar="sgd|rms",
            help="With dynamic evaluation: the weights follow the text.",
            rich_help_panel=ADAPTING,
        ),
    ] = None,
    dynamic_lr: Annotated[
        float | None, typer.Option(help="Its learning rate.", rich_help_panel=ADAPTING)
    ] = None,
    dynamic_decay: Annotated[
        float | None,
        typer.Option(
            help="How fast it goes back to the trained weights.", rich_help_panel=ADAPTING
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Find the best settings of cache and dynamic evaluation on the run's held-out text.",
            rich_help_panel=ADAPTING,
        ),
    ] = False,
) -> None:
    """Measure how well a model predicts texts: bits per byte, perplexities, surprisals.

    Every token is scored, the first too. Between two files the state is reset, and the end of the
    first is scored as one more token. What adapts, and what others count, is beside the plain figures.
    """
    from gru_lm.reporting import console, figures

    for_cache = _given({"window": cache_window, "theta": cache_theta, "weight": cache_weight})
    for_dynamic = _given({"lr": dynamic_lr, "decay": dynamic_decay})
    outputs = Outputs(
        per_token=per_token,
        per_word=per_word,
        per_line=per_line,
        html=html,
        context_curve=context_curve,
        convention=convention,
        baselines=baselines,
        pairs=pairs,
        interpolate=interpolate,
        weight=_weight(weight),
        cache=for_cache if cache else None,
        dynamic=dynamic,
        dynamic_settings=for_dynamic,
        tune=tune,
    )
    for names, without, what in (
        ([f"--cache-{name}" for name in for_cache], not cache, "--cache"),
        ([f"--dynamic-{name}" for name in for_dynamic], not dynamic, "--dynamic sgd|rms"),
        (["--tune"] * tune, not (cache or dynamic), "--cache or --dynamic sgd|rms"),
        (["--weight"] * (weight != "auto"), not interpolate, "--interpolate FILE.arpa"),
    ):
        if names and without:
            raise UsageError(f"{', '.join(names)}: nothing to set without {what}")
    with watch_signals() as flag:
        if per_line == Path("-"):
            plain = not (as_json or batch or chunk) and mode == "stream"
            if files != ["-"] or not plain or outputs != Outputs(per_line=per_line):
                raise UsageError(
                    "--per-line - answers standard input, and nothing else",
                    hint=f"gru-lm eval {run} - --per-line -",
                )
            from gru_lm.commands.eval.lines import answer_lines

            answer_lines(
                run,
                console.result,
                threads=threads,
                device=device,
                encoding=encoding,
                stop=flag.check,
            )
            return
        result = evaluate(
            run,
            files or (),
            mode=mode,
            batch=batch,
            chunk=chunk,
            threads=threads,
            device=device,
            encoding=encoding,
            outputs=outputs,
            stop=flag.check,
        )
    if as_json:
        console.result_json(result)
    else:
        figures.show(result)
    for caveat in result["caveats"]:
        console.warn(caveat)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _weight(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = -1
    if not 0 <= weight <= 1:
        raise UsageError(f"--weight must be 0 to 1, or auto, not {text}")
    return weight
