"""`gru-lm sample RUN`: generate text, written to standard output as it is generated."""

from __future__ import annotations

import math
import secrets
import select
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru_lm.errors import InputError, UsageError
from gru_lm.signals import Stop, never, watch_signals

if TYPE_CHECKING:
    from gru_lm.generation.choice import Choice
    from gru_lm.generation.sampling import Sample, Step
    from gru_lm.training.checkpoint import Checkpoint

LENGTH = 500
PATIENCE = 2.0  # seconds to wait for a piped prompt before a note is printed


def sample(
    run: Path | Checkpoint,
    *,
    prompt: str = "",
    length: int = LENGTH,
    samples: int = 1,
    choice: Choice | None = None,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    allow_unknown: bool = False,
    with_logprobs: bool = False,
    device: str = "auto",
    threads: int | None = None,
    stop: Stop = never,
) -> Iterator[Step]:
    """Sample continuations of `prompt`; yield text as it is generated (sampling.Step).

    `stop` is called every few milliseconds, or before every token, and may raise Stopped. Raises
    GruLmError for problems that the user can fix.
    """
    from gru_lm.reporting import console
    from gru_lm.training import directory as run_directory

    checkpoint = run_directory.find(run, console.warn) if isinstance(run, Path) else run
    # Import torch only after the checkpoint was opened: invalid files are rejected quickly.
    from gru_lm.commands.load import load_model
    from gru_lm.evaluation.metrics import unseen_returns
    from gru_lm.generation.prompt import read_prompt
    from gru_lm.generation.sampling import generate

    loaded = load_model(checkpoint, device=device, threads=threads, stop=stop)
    read = read_prompt(loaded.tokenizer, prompt)
    if read.unknown:
        size = len(read.tokens)
        console.warn(f"{read.unknown} of the prompt's {size} tokens are not in the vocabulary")
    for note in unseen_returns(prompt.count("\r"), loaded.seen, of="the prompt"):
        console.note(note)
    yield from generate(
        loaded.model,
        loaded.tokenizer,
        read,
        samples=samples,
        length=length,
        choice=choice,
        stop_strings=stop_strings,
        seed=seed,
        allow_unknown=allow_unknown,
        with_logprobs=with_logprobs,
        check=stop,
    )


def sample_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a checkpoint.")],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text to continue (default: standard input, if piped).", show_default=False
        ),
    ] = None,
    length: Annotated[int, typer.Option(min=0, help="Maximum number of tokens.")] = LENGTH,
    samples: Annotated[int, typer.Option(min=1, help="Number of texts.")] = 1,
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
    """
    if "" in (stop_strings or ()):
        raise UsageError("--stop is empty", hint="omit it, or give a non-empty string")
    if with_logprobs and not as_json:
        raise UsageError("--logprobs requires --json", hint="add --json")
    if temperature == 0 and typical < 1:
        raise UsageError(
            "--typical cannot be combined with --temperature 0",
            why="temperature 0 always selects the most probable token",
            hint="omit one of them",
        )
    from gru_lm.reporting import console
    from gru_lm.training import directory as run_directory

    # Fail early: before standard input is read and torch is imported.
    checkpoint = run_directory.find(run, console.warn)
    from gru_lm.generation.choice import Choice

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
        # Bytes of an argument that are not UTF-8 cannot be printed: replace them.
        text = _piped(flag.check) if prompt is None else prompt
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        steps = sample(
            checkpoint,
            prompt=text,
            length=length,
            samples=samples,
            choice=choice,
            stop_strings=stop_strings or (),
            seed=seed,
            allow_unknown=allow_unknown,
            with_logprobs=with_logprobs,
            device=device,
            threads=threads,
            stop=flag.check,
        )
        if as_json:
            for finished in _in_order(steps):
                described = _described(finished, text, seed)
                if with_logprobs:
                    described["logprobs"] = [
                        {"id": token, "piece": piece, "logprob": _finite(nats)}
                        for token, piece, nats in finished.logprobs
                    ]
                console.result_json(described)
        elif samples == 1:
            _stream(steps, text)
        else:
            for number, finished in enumerate(_in_order(steps)):
                _write(("\n" if number else "") + _whole_lines(text + finished.text))
    if new_seed and temperature:
        console.note(f"seed: {seed}")


def _piped(stop: Stop) -> str:
    """Read standard input unless it is a terminal or closed."""
    from gru_lm.reporting import console
    from gru_lm.text.sources import stdin_blocks

    if sys.stdin is None or sys.stdin.isatty():
        return ""
    due = time.monotonic() + PATIENCE
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        stop()
        if time.monotonic() >= due:
            console.note('reading the prompt from standard input (--prompt "" for none)')
            break
    try:
        return b"".join(stdin_blocks(stop=stop)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the prompt on standard input is not utf-8 at byte {error.start:,}",
            hint="iconv -t utf-8",
        ) from error


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


def _in_order(steps: Iterator[Step]) -> Iterator[Sample]:
    """Yield the finished samples in order, each as soon as its predecessors are finished."""
    finished: dict[int, Sample] = {}
    following = 0
    for step in steps:
        if step.sample.stop is not None:
            finished[step.number] = step.sample
        while following in finished:
            yield finished.pop(following)
            following += 1


def _described(sampled: Sample, prompt: str, seed: int) -> dict[str, Any]:
    return {
        "text": sampled.text,
        "prompt": prompt,
        "tokens": sampled.tokens,
        "logprob": _finite(sampled.logprob),
        "seed": seed,
        "stop": sampled.stop,
    }


def _finite(nats: float) -> float | None:
    return nats if math.isfinite(nats) else None


def _whole_lines(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _write(text: str) -> None:
    """Write to standard output, unbuffered, in UTF-8 independently of the locale."""
    typer.echo(text.encode(), nl=False)
