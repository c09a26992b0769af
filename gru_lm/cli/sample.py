"""`gru-lm sample RUN`: generate text or records, written to standard output as they are generated."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.errors import Stopped, UsageError
from gru_lm.signals import watch_signals
from gru_lm.text.records import LINE, ROW, Form

if TYPE_CHECKING:
    from gru_lm.generation.sampling import Sample, Step
    from gru_lm.generation.selection import Record, Selection
    from gru_lm.training.checkpoint import Checkpoint


def sample_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a checkpoint.")],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text to continue (default: standard input, if piped).", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Use each line of FILE as a prompt, an empty one too; - for standard input.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Maximum number of tokens (default: 500; 1000 for records).",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of texts, for each prompt.")] = 1,
    unique: Annotated[
        bool, typer.Option("--unique", help="Records: drop repeats, and draw others instead.")
    ] = False,
    novel: Annotated[
        bool,
        typer.Option(
            "--novel",
            help="Records: drop those in the list of the run, held out or not, and draw others instead. "
            "With N records in the list, a new one is dropped by mistake with probability N / 2^64.",
        ),
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="Sharper below 1, flatter above 1; 0 is greedy.")
    ] = 1,
    top_k: Annotated[int, typer.Option(help="Only the K most probable tokens; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Nucleus sampling: only the most probable tokens of mass P.")
    ] = 1,
    min_p: Annotated[
        float,
        typer.Option(help="Only tokens at least P times as probable as the most probable one."),
    ] = 0,
    typical: Annotated[
        float,
        typer.Option(help="Locally typical sampling: only the most typical tokens of mass P."),
    ] = 1,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, repeated tokens become less probable.")
    ] = 1,
    stop_strings: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            metavar="STRING",
            help="End the text before this string; may be repeated.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed: same seed, same text.", show_default="random"),
    ] = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Sample the token for unknown words too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per sample.")
    ] = False,
    with_logprobs: Annotated[
        bool,
        typer.Option("--logprobs", help="With --json: the log-probability of each token, in nats."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:I.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Generate text from a model.

    Prints the prompt and its continuation; several samples are separated by a blank line. Filters apply
    in this order: repetition penalty, temperature, top-k, top-p, min-p, typical.

    From a run of records, whole records are printed: lines and rows of tables one a line, line breaks
    within a row as spaces; paragraphs and files with a blank line between them. --json is always exact.
    A record cut by --length or --stop is printed too, but --unique and --novel accept only complete
    ones; they stop early once fewer than 10 of 10,000 records are accepted.
    """
    form, checkpoint = _checked(
        run, prompt=prompt, prompts=prompts, unique=unique, novel=novel, stop_strings=stop_strings
    )
    if with_logprobs and not as_json:
        raise UsageError("--logprobs requires --json", hint="add --json")
    if temperature == 0 and typical < 1:
        raise UsageError(
            "--typical cannot be combined with --temperature 0",
            why="temperature 0 always selects the most probable token",
            hint="omit one of them",
        )
    from gru_lm.commands.sample import run as command
    from gru_lm.commands.sample.prompts import given_prompt, read_prompts
    from gru_lm.generation.choice import Choice
    from gru_lm.reporting import console

    choice = Choice(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        repetition_penalty=repetition_penalty,
    )
    new_seed = False
    if seed is None:
        seed, new_seed = secrets.randbits(31), True
    with watch_signals() as flag:
        texts = (
            [given_prompt(prompt, form, stop=flag.check)]
            if prompts is None
            else read_prompts(prompts, stop=flag.check)
        )
        options: dict[str, Any] = {
            "prompts": texts,
            "samples": samples,
            "choice": choice,
            "stop_strings": stop_strings or (),
            "seed": seed,
            "allow_unknown": allow_unknown,
            "with_logprobs": with_logprobs,
            "device": device,
            "threads": threads,
            "stop": flag.check,
        }
        if form:
            selection, records = command.sample_records(
                checkpoint,
                length=command.RECORD_LENGTH if length is None else length,
                unique=unique,
                novel=novel,
                **options,
            )
            _print_records(selection, records, None if as_json else form.unit, seed)
        else:
            steps = command.sample(
                checkpoint, length=command.LENGTH if length is None else length, **options
            )
            if as_json:
                for number, finished in _in_order(steps):
                    described = _described(finished, texts[number // samples], seed)
                    console.result_json(described)
            elif samples == 1 and prompts is None:
                _stream(steps, texts[0])
            else:
                for number, finished in _in_order(steps):
                    whole = texts[number // samples] + finished.text
                    _write(("\n" if number else "") + _whole_lines(whole))
    if new_seed and temperature:
        console.note(f"seed: {seed}")


def _checked(
    run: Path,
    *,
    prompt: str | None,
    prompts: str | None,
    unique: bool,
    novel: bool,
    stop_strings: Sequence[str] | None,
) -> tuple[Form | None, Checkpoint]:
    """Find the run, and what its records are, before standard input is read and torch is imported.

    Raises UsageError for options that do not go together, or not with the run.
    """
    if "" in (stop_strings or ()):
        raise UsageError("--stop is empty", hint="omit it, or give a non-empty string")
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt cannot be combined with --prompts", hint="omit one of them")
    from gru_lm.reporting import console
    from gru_lm.training import directory as run_directory

    checkpoint = run_directory.find(run, console.warn)
    form = Form.of(checkpoint.meta["config"])
    if form is None and (unique or novel):
        raise UsageError(
            f"--{'unique' if unique else 'novel'} needs a run of records; {run} is one of running text",
            hint="gru-lm train LIST --records line",
        )
    return form, checkpoint


def _print_records(
    selection: Selection, batches: Iterator[list[Record]], unit: str | None, seed: int
) -> None:
    """Print records of a unit, or as JSON if it is None; then their counts on standard error."""
    from gru_lm.reporting import console

    try:
        before = ""
        for records in batches:
            prompts = (selection.prompts[record.prompt] for record in records)
            if unit is None:
                described = (
                    _described(record, prompt, seed)
                    for record, prompt in zip(records, prompts, strict=True)
                )
                marked = map(console.marked, described)
                console.result(
                    "\n".join(
                        json.dumps(each, ensure_ascii=False, allow_nan=False) for each in marked
                    )
                )
                continue
            wholes = [prompt + each.text for prompt, each in zip(prompts, records, strict=True)]
            if unit in (LINE, ROW):
                _write("".join(" ".join(whole.split("\n")) + "\n" for whole in wholes))
            else:
                _write(before + "\n".join(map(_whole_lines, wholes)))
                before = "\n"
    except Stopped:
        _count(selection)
        raise
    _count(selection)


def _count(selection: Selection) -> None:
    """Print how many records were drawn, and what they were, on standard error."""
    from gru_lm.generation.selection import FEWEST, RECENT
    from gru_lm.reporting import console

    counts = [f"{selection.ended:,} ended"]
    if selection.unique is not None:
        counts.append(f"{selection.unique:,} unique")
        if selection.novel is not None:
            counts.append(f"{selection.novel:,} of these novel")
    if selection.kept < selection.drawn:
        counts.append(f"{selection.kept:,} printed")
    console.note(f"records drawn: {selection.drawn:,}; {', '.join(counts)}")
    if selection.short:
        prompts = len(selection.prompts)
        of = f" for {selection.short:,} of {prompts:,} prompts" if prompts > 1 else ""
        console.warn(
            f"stopped early{of}: fewer than {FEWEST} of the last {RECENT:,} records were accepted; "
            f"{selection.kept:,} of {selection.samples * prompts:,} were found"
        )


def _stream(steps: Iterator[Step], prompt: str) -> None:
    """Print one text as it is generated."""
    first = True
    last = ""
    for step in steps:
        # Print the prompt with the first step: if the run cannot be loaded, nothing is printed.
        text = prompt + step.text if first else step.text
        first = False
        if text:
            _write(text)
            last = text[-1]
    if last != "\n":
        _write("\n")


def _in_order(steps: Iterator[Step]) -> Iterator[tuple[int, Sample]]:
    """Yield the finished samples in order, each as soon as its predecessors are finished."""
    finished: dict[int, Sample] = {}
    following = 0
    for step in steps:
        if step.sample.stop is not None:
            finished[step.number] = step.sample
        while following in finished:
            yield following, finished.pop(following)
            following += 1


def _described(sampled: Sample, prompt: str, seed: int) -> dict[str, Any]:
    described = {
        "text": sampled.text,
        "prompt": prompt,
        "tokens": sampled.tokens,
        "logprob": _finite(sampled.logprob),
        "seed": seed,
        "stop": sampled.stop,
    }
    listed = getattr(sampled, "listed", None)
    if listed is not None:
        described["novel"] = not listed
    if sampled.logprobs:
        described["logprobs"] = [
            {"id": token, "piece": piece, "logprob": _finite(nats)}
            for token, piece, nats in sampled.logprobs
        ]
    return described


def _finite(nats: float) -> float | None:
    return nats if math.isfinite(nats) else None


def _whole_lines(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _write(text: str) -> None:
    """Write to standard output, unbuffered, in UTF-8 independently of the locale."""
    typer.echo(text.encode(), nl=False)
