"""The plain functions behind `sample`: continuations of running text, and records.

Prints notes on standard error; results are returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gru_lm.errors import InputError, UsageError
from gru_lm.layout import CONFIG, RECORDS
from gru_lm.reporting import console
from gru_lm.signals import Stop, never
from gru_lm.text.records import LINE, PARAGRAPH, Form
from gru_lm.training import directory as run_directory

if TYPE_CHECKING:
    from gru_lm.commands.load import LoadedModel
    from gru_lm.generation.choice import Choice
    from gru_lm.generation.sampling import Step
    from gru_lm.generation.selection import Record, Selection
    from gru_lm.text.record_keys import Keys
    from gru_lm.training.checkpoint import Checkpoint

LENGTH = 500
RECORD_LENGTH = 1000  # few records are as long


def sample(
    run: Path | Checkpoint,
    *,
    prompts: Sequence[str] = ("",),
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
    """Sample continuations of each prompt; yield text as it is generated (sampling.Step).

    A step's number counts the samples of all prompts. `stop` is called every few milliseconds, or before
    every token, and may raise Stopped. Raises GruLmError for problems that the user can fix.
    """
    loaded = _loaded(run, device=device, threads=threads, stop=stop)
    from gru_lm.generation.prompt import read_prompt
    from gru_lm.generation.sampling import generate

    _warn_of(prompts, loaded)
    for number, prompt in enumerate(prompts):
        first = number * samples
        for step in generate(
            loaded.model,
            loaded.tokenizer,
            read_prompt(loaded.tokenizer, prompt),
            samples=samples,
            first=first,
            length=length,
            choice=choice,
            stop_strings=stop_strings,
            seed=seed,
            allow_unknown=allow_unknown,
            with_logprobs=with_logprobs,
            check=stop,
        ):
            yield step._replace(number=first + step.number)


def sample_records(
    run: Path | Checkpoint,
    *,
    prompts: Sequence[str] = ("",),
    length: int = RECORD_LENGTH,
    samples: int = 1,
    unique: bool = False,
    novel: bool = False,
    choice: Choice | None = None,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
    allow_unknown: bool = False,
    with_logprobs: bool = False,
    device: str = "auto",
    threads: int | None = None,
    stop: Stop = never,
) -> tuple[Selection, Iterator[list[Record]]]:
    """Draw `samples` records that begin with each prompt, from a run of records.

    Returns the counts so far and an iterator over the records, in the order of the prompts, several at a
    time. `unique` and `novel` are those of selection.Selection. `stop` is called every few milliseconds
    and may raise Stopped. Raises UsageError for a run of running text, InputError if `novel` needs
    records.u64 and it cannot be used.
    """
    checkpoint = _found(run)
    form = Form.of(checkpoint.meta["config"])
    if form is None:
        raise UsageError(
            f"{run if isinstance(run, Path) else run.path} is a run of running text, not of records",
            hint="gru-lm train LIST --records line",
        )
    listed_M = known_keys(checkpoint, needed=novel)
    loaded = _loaded(checkpoint, device=device, threads=threads, stop=stop)
    from gru_lm.generation.records import draw_records
    from gru_lm.generation.selection import Selection

    _warn_of(prompts, loaded)
    selection = Selection(
        prompts,
        samples,
        unique=unique,
        novel=novel,
        paragraphs=form.unit == PARAGRAPH,
        listed_M=listed_M,
    )
    return selection, draw_records(
        loaded.model,
        loaded.tokenizer,
        selection,
        length=length,
        one_line=form.unit == LINE,
        choice=choice,
        stop_strings=stop_strings,
        seed=seed,
        allow_unknown=allow_unknown,
        with_logprobs=with_logprobs,
        check=stop,
    )


def known_keys(checkpoint: Checkpoint, *, needed: bool) -> Keys | None:
    """The keys of all records of the run's list; None if they cannot be read and are not `needed`.

    Raises InputError if they are.
    """
    from gru_lm.text.record_keys import read_keys

    directory = checkpoint.path.parent
    path = directory / RECORDS
    listed_M = read_keys(path, str(checkpoint.meta["data"].get("records")))
    if listed_M is not None or not needed:
        return listed_M
    if not (directory / CONFIG).exists():
        raise InputError(
            f"--novel needs the run that {checkpoint.path} is from: {path} is missing",
            why="a checkpoint does not hold the keys of the records that it was trained on",
            hint="give the run itself; gru-lm train --resume RUN writes a lost table again",
        )
    raise InputError(
        f"--novel needs {path}, which is "
        f"{'damaged, or of another run' if path.exists() else 'missing'}",
        hint=f"gru-lm train --resume {directory} writes it again",
    )


def _found(run: Path | Checkpoint) -> Checkpoint:
    return run_directory.find(run, console.warn) if isinstance(run, Path) else run


def _loaded(run: Path | Checkpoint, *, device: str, threads: int | None, stop: Stop) -> LoadedModel:
    checkpoint = _found(run)
    # Import torch only after the checkpoint was opened: invalid files are rejected quickly.
    from gru_lm.commands.load import load_model

    return load_model(checkpoint, device=device, threads=threads, stop=stop)


def _warn_of(prompts: Sequence[str], loaded: LoadedModel) -> None:
    """Warn of tokens in the prompts that the model does not know."""
    from gru_lm.evaluation.metrics import unseen_returns
    from gru_lm.generation.prompt import read_prompt

    whose = "the prompt" if len(prompts) == 1 else "the prompts"
    if not loaded.tokenizer.lossless:
        read = [read_prompt(loaded.tokenizer, prompt) for prompt in prompts]
        if unknown := sum(prompt.unknown for prompt in read):
            size = sum(len(prompt.tokens) for prompt in read)
            apostrophe = "'s" if len(prompts) == 1 else "'"
            console.warn(
                f"{unknown} of {whose}{apostrophe} {size} tokens are not in the vocabulary"
            )
    returns = sum(prompt.count("\r") for prompt in prompts)
    for note in unseen_returns(returns, loaded.seen, of=whose):
        console.note(note)
