"""Lines in, their log-probabilities out, one by one and in order: for a recogniser's hypotheses.

Each line starts from the model's start and has its own end, as in `eval --mode line`. Invariant: what
lines are answered together changes the speed alone.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gru_lm.commands.load import LoadedModel, load_model
from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation.scoring import score
from gru_lm.evaluation.texts import FASTEST
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.files import known_encoding, newline_is_a_byte
from gru_lm.text.sources import stdin_blocks
from gru_lm.training import directory as run_directory

BOM = codecs.BOM_UTF8


def answer_lines(
    run: Path,
    answer: Callable[[str], None],
    *,
    threads: int | None = None,
    device: str = "auto",
    encoding: str = "utf-8",
    stop: Stop,
) -> None:
    """For each line of standard input a row: number, tokens, nats; and first of all their names.

    As soon as lines come, those that are there are scored together. A last line without its newline
    counts as one with it. Raises InputError, naming the line, where one is not in `encoding`.
    """
    encoding = known_encoding(encoding)
    if not newline_is_a_byte(encoding):
        raise UsageError(
            f"lines in {encoding} cannot be told apart as they come",
            hint=f"iconv -f {encoding} -t utf-8 | gru-lm eval {run} - --per-line -",
        )
    loaded = load_model(
        run_directory.find(run, console.warn), device=device, threads=threads, stop=stop
    )
    answer("line\ttokens\tnats")
    number = 0
    for lines in _lines(encoding, stop):
        for tokens, nats in _scored(loaded, lines, stop):
            number += 1
            answer(f"{number}\t{tokens}\t{nats:.9g}")


def _lines(encoding: str, stop: Stop) -> Iterator[list[str]]:
    """The whole lines of standard input without their ends, as many at once as are there."""
    begun: list[bytes] = []  # of a line that has not ended yet
    number = 0
    for block in itertools.chain(stdin_blocks(stop=stop), [b""]):
        *whole, rest = block.split(b"\n")
        if whole:
            whole[0] = b"".join([*begun, whole[0]])
            begun = []
        begun.append(rest)
        if not block and any(begun):
            whole.append(b"".join(begun))
        lines: list[str] = []
        for line in whole:
            number += 1
            try:
                lines.append(line.removeprefix(BOM if number == 1 else b"").decode(encoding))
            except UnicodeDecodeError as error:
                yield lines  # those before it are answered
                raise InputError(
                    f"standard input, line {number:,}: not {encoding}",
                    why=f"byte 0x{error.object[error.start]:02x}: {error.reason}",
                    hint="name its encoding, for example --encoding latin-1",
                ) from error
        yield lines


def _scored(loaded: LoadedModel, lines: list[str], stop: Stop) -> list[tuple[int, float]]:
    """The tokens and nats of each line."""
    encoded = [np.array(loaded.tokenizer.encode_text(line + "\n"), np.int32) for line in lines]
    nats = [0.0] * len(lines)
    batch, chunk = FASTEST["line"]
    for portion in score(
        loaded.model,
        [(number, [tokens_N]) for number, tokens_N in enumerate(encoded)],
        newline_id=loaded.tokenizer.newline_id,
        batch=batch,
        chunk=chunk,
        stop=stop,
    ):
        nats[portion.document] -= float(portion.log_probs_N.sum())
    return [(len(tokens_N), total) for tokens_N, total in zip(encoded, nats, strict=True)]
