"""Log-probabilities of lines from standard input, in order, for example to rescore n-best lists.

Each line is scored from the zero state and includes its end, as in `eval --mode line`, or that of the
record which it is. Invariant: batching affects speed only.
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
from gru_lm.text.records import LINE, ROW, Form
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
    """Call `answer` with a header and then, for each line of standard input, number, tokens and nats.

    Lines are scored as soon as they arrive, in batches of those available. A final line without a
    newline is scored as if it had one. Raises UsageError if lines cannot be split in `encoding`, or if
    the run's records are not lines; InputError with the line number if a line is not valid in it.
    """
    encoding = known_encoding(encoding)
    if not newline_is_a_byte(encoding):
        raise UsageError(
            f"lines in {encoding} cannot be read one by one from standard input",
            hint=f"iconv -f {encoding} -t utf-8 | gru-lm eval {run} - --per-line -",
        )
    checkpoint = run_directory.find(run, console.warn)
    form = Form.of(checkpoint.meta["config"])
    if form and form.unit not in (LINE, ROW):
        raise UsageError(
            f"--per-line - scores lines, and {run} was trained on one record for each {form.unit}",
            hint=f"gru-lm eval {run} FILE --per-line OUT.tsv",
        )
    loaded = load_model(checkpoint, device=device, threads=threads, stop=stop)
    end_id = loaded.tokenizer.end_id if form else loaded.tokenizer.newline_id
    answer("line\ttokens\tnats")
    number = 0
    for lines in _lines(encoding, stop):
        # The \r of a line end is not part of a record.
        texts = [line.removesuffix("\r") for line in lines] if form else lines
        for tokens, nats in _scored(loaded, texts, end_id, stop):
            number += 1
            answer(f"{number}\t{tokens}\t{nats:.9g}")


def _lines(encoding: str, stop: Stop) -> Iterator[list[str]]:
    """Complete lines of standard input without their ends, all available ones at a time."""
    partial: list[bytes] = []  # of an incomplete line
    number = 0
    for block in itertools.chain(stdin_blocks(stop=stop), [b""]):
        *complete, rest = block.split(b"\n")
        if complete:
            complete[0] = b"".join([*partial, complete[0]])
            partial = []
        partial.append(rest)
        if not block and any(partial):
            complete.append(b"".join(partial))
        lines: list[str] = []
        for line in complete:
            number += 1
            try:
                lines.append(line.removeprefix(BOM if number == 1 else b"").decode(encoding))
            except UnicodeDecodeError as error:
                yield lines  # lines before the error are still answered
                raise InputError(
                    f"standard input, line {number:,}: not {encoding}",
                    why=f"byte 0x{error.object[error.start]:02x}: {error.reason}",
                    hint="specify its encoding, for example --encoding latin-1",
                ) from error
        yield lines


def _scored(
    loaded: LoadedModel, lines: list[str], end_id: int, stop: Stop
) -> list[tuple[int, float]]:
    """Number of tokens and nats of each line, which ends with `end_id`."""
    encoded = [np.array(loaded.tokenizer.encode_text(line + "\n"), np.int32) for line in lines]
    for tokens_N in encoded:
        tokens_N[-1] = end_id
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
