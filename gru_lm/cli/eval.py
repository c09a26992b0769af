"""`gru-lm eval RUN [FILE ...]`: score texts with a model.

Options and printing; commands/eval/ measures, and evaluation/metrics.py defines the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gru_lm.commands.eval.options import Outputs
from gru_lm.commands.eval.run import evaluate
from gru_lm.errors import UsageError
from gru_lm.evaluation import CONVENTIONS, MODES, RECORDS
from gru_lm.signals import watch_signals

TABLES, OPTIONAL, ADAPTING = "Tables and pages", "Optional figures", "Adaptive models"


def _out(name: str, what: str) -> Any:
    return typer.Option(metavar=name, help=what, rich_help_panel=TABLES)


def eval_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a checkpoint.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Files, folders, globs, - (standard input) or @names of corpora; "
            "default: the run's own held-out text.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="|".join((*MODES, RECORDS)),
            help="stream (the default): the state is carried through each document; line: it is reset "
            "at each line; columns: parallel columns, as in validation during training; records: each "
            "record is scored alone, the only mode for runs of records.",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the files.")] = "utf-8",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Documents, lines, columns or rows of records in parallel; affects only speed.",
        ),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Tokens per forward pass; affects only speed.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:I.")] = "auto",
    per_token: Annotated[
        Path | None,
        _out(
            "OUT.tsv",
            "Write the surprisal and entropy of every token. Tables end in .tsv, .csv or .jsonl; in "
            "pandas: read_csv('OUT.csv', keep_default_na=False, dtype={'piece': str, 'word': str}), "
            "for OUT.tsv also sep='\\t', quoting=3.",
        ),
    ] = None,
    per_word: Annotated[
        Path | None,
        _out("OUT.tsv", "Write the surprisal of every word."),
    ] = None,
    per_line: Annotated[
        Path | None,
        _out(
            "OUT.tsv",
            "Write the tokens and nats of every line or record; - scores standard input line by line.",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="NAME",
            help="Copy this column of the table for --per-line and --strangest.",
            rich_help_panel=TABLES,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        _out(
            "OUT.html",
            "Write an HTML report: figures, loss along the text, text coloured by surprisal.",
        ),
    ] = None,
    context_curve: Annotated[
        Path | None, _out("OUT.png", "Measure and plot the loss against the context length.")
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="|".join(CONVENTIONS),
            help="Print the figures in the convention and layout of another tool.",
            rich_help_panel=OPTIONAL,
        ),
    ] = None,
    strangest: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Print the N records of the largest surprisal per token.",
            rich_help_panel=OPTIONAL,
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Add uniform and unigram models, bz2 and lzma on the same text.",
            rich_help_panel=OPTIONAL,
        ),
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Minimal pairs: JSON Lines in BLiMP's format, or a folder or zip of them.",
            rich_help_panel=OPTIONAL,
        ),
    ] = None,
    interpolate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.arpa",
            help="Add an n-gram model, alone and interpolated with the run's word model.",
            rich_help_panel=OPTIONAL,
        ),
    ] = None,
    weight: Annotated[
        str,
        typer.Option(
            metavar="W|auto",
            help="Weight of the n-gram model, 0 to 1; auto: tuned on the run's held-out text.",
            rich_help_panel=OPTIONAL,
        ),
    ] = "auto",
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Add the neural cache.", rich_help_panel=ADAPTING),
    ] = False,
    cache_window: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in the cache (default: 2000).", rich_help_panel=ADAPTING),
    ] = None,
    cache_theta: Annotated[
        float | None,
        typer.Option(help="Flatness θ of the cache (default: 0.1).", rich_help_panel=ADAPTING),
    ] = None,
    cache_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the cache (default: 0.15).", rich_help_panel=ADAPTING),
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(
            metavar="sgd|rms",
            help="Add dynamic evaluation: gradient steps on the text scored so far.",
            rich_help_panel=ADAPTING,
        ),
    ] = None,
    dynamic_lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of dynamic evaluation.", rich_help_panel=ADAPTING),
    ] = None,
    dynamic_decay: Annotated[
        float | None,
        typer.Option(help="Decay towards the trained weights.", rich_help_panel=ADAPTING),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Tune cache and dynamic evaluation on the run's held-out text.",
            rich_help_panel=ADAPTING,
        ),
    ] = False,
) -> None:
    """Measure how well a model predicts texts: bits per byte, perplexities, surprisals.

    Every token is scored, including the first. The state is reset between files; a run of records reads
    lists in its own form, and scores each record alone. Adaptive models and
    the conventions of other tools are reported in addition to the plain figures, never mixed into them.
    """
    from gru_lm.reporting import console, figures

    for_cache = _given({"window": cache_window, "theta": cache_theta, "weight": cache_weight})
    for_dynamic = _given({"lr": dynamic_lr, "decay": dynamic_decay})
    outputs = Outputs(
        per_token=per_token,
        per_word=per_word,
        per_line=per_line,
        id_column=id_column,
        strangest=strangest,
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
        (
            ["--id"] * (id_column is not None),
            not (per_line or strangest),
            "--per-line or --strangest",
        ),
        (["--weight"] * (weight != "auto"), not interpolate, "--interpolate FILE.arpa"),
    ):
        if names and without:
            raise UsageError(f"{', '.join(names)}: no effect without {what}")
    with watch_signals() as flag:
        if per_line == Path("-"):
            plain = not (as_json or batch or chunk or mode)
            if files != ["-"] or not plain or outputs != Outputs(per_line=per_line):
                raise UsageError(
                    "--per-line - scores only standard input and allows no other options",
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
