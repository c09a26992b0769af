"""`gru-lm eval RUN [FILE ...]`: how well a model predicts texts.

What the figures mean is evaluation/metrics.py's; here they are gathered and shown.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.errors import UsageError, unknown_name
from gru_lm.evaluation import MODES
from gru_lm.evaluation.metrics import UNKNOWN_WARNING
from gru_lm.signals import watch_signals

if TYPE_CHECKING:
    from gru_lm.evaluation.metrics import Counts
    from gru_lm.opened import Opened
    from gru_lm.text.documents import Document

Stop = Callable[[], None]


def _never() -> None:
    """The default of `stop`: nobody asks us to."""


def evaluate(
    run: Path,
    files: Sequence[str] = (),
    *,
    mode: str = "stream",
    batch: int | None = None,
    chunk: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    encoding: str = "utf-8",
    per_token: Path | None = None,
    per_line: Path | None = None,
    stop: Stop = _never,
) -> dict[str, Any]:
    """Score texts, or the run's own held-out text; returns what `eval --json` prints.

    `stop` is polled and raises Stopped. What a user can mend is raised as a GruLmError; `per_token`
    and `per_line` are then as they were before.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    for out in (per_token, per_line):
        if out and out.exists() and not out.is_file():
            raise UsageError(f"{out} is not a regular file", hint="name a file to be written")

    from gru_lm.reporting import console
    from gru_lm.text.sources import open_documents, spool_stdin
    from gru_lm.training import runs

    with tempfile.TemporaryDirectory(prefix="gru-lm-") as folder:
        checkpoint = runs.find(run, console.warn)
        stdin = Path(folder) / "stdin"
        documents: list[Document] = []
        if files:
            if "-" in files:
                spool_stdin(stdin, stop=stop)
            documents = open_documents(
                files, encoding=encoding, stdin=stdin, stop=stop, note=console.note
            )
        # Torch comes only now: what is refused is refused without it.
        from gru_lm.opened import held_out, open_model

        opened = open_model(checkpoint, device=device, threads=threads)
        if not files:
            documents = list(held_out(opened, stop=stop).documents)
        started = time.monotonic()
        counts = _measured(
            opened,
            documents,
            mode=mode,
            batch=batch,
            chunk=chunk,
            per_token=per_token,
            per_line=per_line,
            stop=stop,
        )
        seconds = time.monotonic() - started

    total = sum(counts[1:], counts[0])
    result: dict[str, Any] = {
        **total.figures(),
        "mode": mode,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(total.tokens / seconds, 1) if seconds else None,
        "checkpoint": str(checkpoint.path),
        "device": str(opened.device),
    }
    if len(documents) > 1:
        result["files"] = [
            {"file": document.name, **each.figures()}
            for document, each in zip(documents, counts, strict=True)
        ]
    return result


def _measured(
    opened: Opened,
    documents: Sequence[Document],
    *,
    mode: str,
    batch: int | None,
    chunk: int | None,
    per_token: Path | None,
    per_line: Path | None,
    stop: Stop,
) -> list[Counts]:
    """The counts of each document; the tables are in place when it returns."""
    from gru_lm import atomic
    from gru_lm.evaluation.texts import PerLine, PerToken, Table, measure
    from gru_lm.reporting import console
    from gru_lm.text.documents import survey

    # A first pass finds whatever cannot be read before the long work, and how long that will be.
    with console.progress("reading", None) as advance:
        size = survey(documents, stop=stop, progress=advance).bytes
    with ExitStack() as stack:
        tables: list[Table] = []
        if per_token:
            file = stack.enter_context(atomic.replacing(per_token))
            tables.append(PerToken(file, opened.tokenizer))
        if per_line:
            file = stack.enter_context(atomic.replacing(per_line))
            by_line = PerLine(file, opened.tokenizer)
            tables.append(by_line)
        advance = stack.enter_context(console.progress("scoring", size))
        counts = measure(
            opened.model,
            opened.tokenizer,
            documents,
            mode=mode,
            batch=batch,
            chunk=chunk,
            tables=tables,
            stop=stop,
            progress=advance,
        )
        if per_line:
            by_line.finish()
    return counts


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
    per_token: Annotated[
        Path | None,
        typer.Option(metavar="OUT.tsv", help="Write the surprisal of every token there."),
    ] = None,
    per_line: Annotated[
        Path | None,
        typer.Option(metavar="OUT.tsv", help="Write tokens and nats of every line there."),
    ] = None,
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
) -> None:
    """Measure how well a model predicts texts: bits per byte, perplexities, surprisals.

    Every token is scored, the first too. Between two files the state is reset, and the end of the
    first is scored as one more token.
    """
    from gru_lm.reporting import console

    with watch_signals() as flag:
        result = evaluate(
            run,
            files or (),
            mode=mode,
            batch=batch,
            chunk=chunk,
            threads=threads,
            device=device,
            encoding=encoding,
            per_token=per_token,
            per_line=per_line,
            stop=flag.check,
        )
    if as_json:
        console.result_json(result)
    else:
        _print_result(result)
    if (result["unknown_rate"] or 0) > UNKNOWN_WARNING:
        console.warn(
            f"{result['unknown_rate']:.2%} of the tokens are unknown: "
            "perplexity and bits per byte are flattered"
        )


FIGURES = (
    ("bits_per_byte", "bits per byte", ".4f"),
    ("bits_per_character", "bits per character", ".4f"),
    ("nats_per_token", "nats per token", ".4f"),
    ("perplexity", "perplexity", ",.2f"),
    ("word_perplexity", "word perplexity", ",.2f"),
    ("perplexity_excluding_unknown", "perplexity without unknown", ",.2f"),
    ("unknown_rate", "unknown", ".2%"),
    ("tokens", "tokens", ","),
    ("words", "words", ","),
    ("lines", "lines", ","),
    ("characters", "characters", ","),
    ("bytes", "bytes", ","),
)
NOT_SPELLED = ("bits_per_byte", "bits_per_character")  # too low where a token hides its letters
BESIDE = ("bits_per_byte", "bits_per_character", "perplexity", "word_perplexity", "unknown_rate")


def _print_result(result: dict[str, Any]) -> None:
    from gru_lm.reporting import console

    hidden = " (unknown words not spelled out)" if result["unknown_tokens"] else ""
    figures = [
        (name, label + hidden if name in NOT_SPELLED else label, style)
        for name, label, style in FIGURES
    ]
    if "files" in result:
        shown = [row for row in figures if row[0] in (*BESIDE, "tokens", "bytes")]
        rows = [
            [each["file"], *(_shown(each[name], style) for name, _, style in shown)]
            for each in (*result["files"], {**result, "file": "total"})
        ]
        console.table(["file", *(label for _, label, _ in shown)], rows)
    else:
        rows = [[label, _shown(result[name], style)] for name, label, style in figures]
        console.table(["figure", "value"], rows)
    speed = f"{result['tokens_per_second']:,.0f} tokens/s" if result["seconds"] else ""
    console.note(
        f"every token scored, the first too; mode {result['mode']}; {result['checkpoint']}; "
        f"{result['seconds']:.1f} s {speed} on {result['device']}"
    )


def _shown(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
