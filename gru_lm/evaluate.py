"""Everything that `gru-lm eval` measures of a run on texts, gathered into one plain dictionary.

The plain figures come first; what else was asked for is beside them, each thing under a name of its own,
and never mixed into them. Writes the tables and pictures that were asked for, and prints no result.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gru_lm.errors import UsageError, unknown_name
from gru_lm.evaluation import CONVENTIONS, MODES
from gru_lm.evaluation.metrics import caveats
from gru_lm.signals import Stop, never

if TYPE_CHECKING:
    from gru_lm.evaluation.beside import ByBlock
    from gru_lm.evaluation.texts import Table
    from gru_lm.opened import Opened
    from gru_lm.text.documents import Document

MOST_OF_CONTEXT = 1 << 23  # tokens of the text that a context curve is drawn from


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure and to write beside the plain figures; all of it is optional."""

    per_token: Path | None = None
    per_word: Path | None = None
    per_line: Path | None = None
    html: Path | None = None
    context_curve: Path | None = None
    convention: str | None = None
    baselines: bool = False
    pairs: Path | None = None
    interpolate: Path | None = None  # an ARPA file
    weight: float | None = None  # of its n-grams; None: tuned
    cache: Mapping[str, float] | None = None  # settings other than the usual ones
    dynamic: str | None = None  # the method
    dynamic_settings: Mapping[str, float] = field(default_factory=dict)
    tune: bool = False  # cache and dynamic evaluation, on the run's own held-out text

    def files(self) -> list[Path]:
        """What will be written."""
        written = (self.per_token, self.per_word, self.per_line, self.html, self.context_curve)
        return [path for path in written if path]


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
    wanted: Wanted | None = None,
    stop: Stop = never,
) -> dict[str, Any]:
    """Score texts, or the run's own held-out text; returns what `eval --json` prints.

    With pairs and no files it is the pairs alone. `stop` is polled and raises Stopped. What a user can
    mend is raised as a GruLmError; the files that are to be written are then as they were before.
    """
    wanted = wanted or Wanted()
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    if wanted.convention not in (None, *CONVENTIONS):
        raise unknown_name("convention", wanted.convention or "", CONVENTIONS)
    if wanted.pairs and not files and wanted != Wanted(pairs=wanted.pairs):
        raise UsageError(
            "--pairs alone judges pairs, and nothing else",
            hint=f"name a text too: gru-lm eval {run} FILE --pairs {wanted.pairs}",
        )
    if mode != "stream" and (wanted.cache is not None or wanted.dynamic):
        raise UsageError(
            f"what adapts carries on through the text, not --mode {mode}", hint="leave --mode out"
        )

    from gru_lm.reporting import console
    from gru_lm.text.documents import survey
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
        from gru_lm.adapted import check_settings
        from gru_lm.opened import open_model, own_text

        check_settings(cache=wanted.cache, method=wanted.dynamic, dynamic=wanted.dynamic_settings)
        opened = open_model(checkpoint, device=device, threads=threads)
        if not files and not wanted.pairs:
            documents = list(own_text(opened, "valid", stop=stop).documents)
        _check_outputs(wanted, documents)
        # A first pass finds whatever cannot be read before the long work, and how long that will be.
        with console.progress("reading", None) as advance:
            text = survey(documents, stop=stop, progress=advance)
        found: list[str] = []
        if wanted.tune or (wanted.interpolate and wanted.weight is None):
            own = own_text(opened, "valid", stop=stop)
            if text.fingerprint == survey(own.documents, stop=stop).fingerprint:
                found.append("what is tuned here is tuned on the very text that is measured")
        if wanted.dynamic == "rms":
            own_text(opened, "train", stop=stop)
        result: dict[str, Any] = {
            "checkpoint": str(checkpoint.path),
            "device": str(opened.device),
            "caveats": found,
        }
        if wanted.pairs:
            result["pairs"] = pairs = _pairs(opened, wanted.pairs, stop=stop)
            found += caveats(opened.tokenizer, pairs["unknown_rate"], of="the pairs")
        if documents:
            result = _on_texts(
                opened,
                documents,
                result,
                size=text.bytes,
                mode=mode,
                batch=batch,
                chunk=chunk,
                wanted=wanted,
                stop=stop,
            )
    return result


def _check_outputs(wanted: Wanted, documents: Sequence[Document]) -> None:
    """Raise UsageError where what is to be written would replace what is read, or something else."""
    wholes = (getattr(document, "document", document) for document in documents)
    named = (wanted.pairs, wanted.interpolate, *(getattr(whole, "path", None) for whole in wholes))
    inputs = [path for path in named if path and path.exists()]
    outs = wanted.files()
    for number, out in enumerate(outs):
        if str(out) == "-":
            raise UsageError("tables and pages are written to files, not to -", hint="name a file")
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is not a regular file", hint="name a file to be written")
        if out.exists() and any(out.samefile(path) for path in inputs):
            raise UsageError(f"{out} is read here, and not to be replaced", hint="another name")
        if out.suffix == ".safetensors":
            raise UsageError(f"{out} has the name of a model", hint="another name")
        if out.absolute() in [other.absolute() for other in outs[:number]]:
            raise UsageError(f"{out} cannot hold two things at once", hint="a name for each")


def _pairs(opened: Opened, path: Path, *, stop: Stop) -> dict[str, Any]:
    """How many minimal pairs the model judges rightly."""
    from gru_lm.evaluation.minimal_pairs import judged, read_pairs, score_pairs
    from gru_lm.reporting import console

    pairs = read_pairs(path, stop=stop)
    with console.progress("judging pairs", 2 * len(pairs)) as advance:
        scores = score_pairs(opened.model, opened.tokenizer, pairs, stop=stop, progress=advance)
    return judged(pairs, scores)


def _on_texts(
    opened: Opened,
    documents: Sequence[Document],
    result: dict[str, Any],
    *,
    size: int,
    mode: str,
    batch: int | None,
    chunk: int | None,
    wanted: Wanted,
    stop: Stop,
) -> dict[str, Any]:
    """`result` with the figures of the documents; files are in place when it returns."""
    from gru_lm import atomic
    from gru_lm.evaluation.baselines import baselines
    from gru_lm.evaluation.beside import ByBlock, Conventions, Shown, TokenCounts, split_words
    from gru_lm.evaluation.metrics import Counts
    from gru_lm.evaluation.tables import PerLine, PerToken, PerWord, details
    from gru_lm.evaluation.texts import measure
    from gru_lm.interpolation import Interpolation
    from gru_lm.reporting import console
    from gru_lm.text.documents import readings

    tokenizer, names = opened.tokenizer, [document.name for document in documents]
    with ExitStack() as stack:
        # All at once: one that cannot be written is refused before the long work.
        out = {path: stack.enter_context(atomic.replacing(path)) for path in wanted.files()}
        ngrams = (
            Interpolation(opened, wanted.interpolate, weight=wanted.weight, stop=stop)
            if wanted.interpolate
            else None
        )
        by_block, conventions = ByBlock(), Conventions(tokenizer)
        used = TokenCounts(tokenizer.vocab_size)
        tables: list[Table] = [by_block, conventions, used]
        if wanted.per_token:
            tables.append(PerToken(out[wanted.per_token], tokenizer, documents))
        by_word = PerWord(out[wanted.per_word], tokenizer, documents) if wanted.per_word else None
        by_line = PerLine(out[wanted.per_line], tokenizer) if wanted.per_line else None
        shown = Shown(tokenizer) if wanted.html else None
        mixture = ngrams.mixture() if ngrams else None
        tables += [table for table in (by_word, by_line, shown, mixture) if table]
        started = time.monotonic()
        with console.progress("scoring", size) as advance:
            counts = measure(
                opened.model,
                tokenizer,
                documents,
                mode=mode,
                batch=batch,
                chunk=chunk,
                tables=tables,
                of_distribution=details(tokenizer) if wanted.per_token or by_word else None,
                stop=stop,
                progress=advance,
            )
        seconds = time.monotonic() - started
        for table in (by_word, by_line):
            if table:
                table.finish()

        total = sum(counts, Counts())
        interval = by_block.interval().interval
        result = {
            **total.figures(),
            "ci95": interval and list(interval),
            "mode": mode,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(total.tokens / seconds, 1) if seconds else None,
            **result,
        }
        result["caveats"] += caveats(tokenizer, total.unknown_rate())
        if len(documents) > 1:
            result["files"] = [
                {"file": name, **each.figures()} for name, each in zip(names, counts, strict=True)
            ]
        if wanted.convention:
            name = names[0] if len(names) == 1 else f"{len(names)} files"
            words = split_words(documents) if wanted.convention == "lm-eval" else []
            if not words and tokenizer.kind != "word":
                result["caveats"].append(f"a word of --as {wanted.convention} is a piece here")
            result["as"] = conventions.figures(
                wanted.convention, name=name, words=words, size=total.bytes
            )
        if wanted.baselines:
            pieces = (piece for pieces in readings(documents) for piece in pieces)
            result["baselines"] = baselines(
                used.counts_V, pieces, spelling_nats=total.spelling_nats, stop=stop
            )
        if ngrams and mixture:
            result |= ngrams.rows(mixture, documents, total)
            result["caveats"] += ngrams.caveats()
        result |= _adapted(opened, documents, wanted, size=size, stop=stop)
        if wanted.context_curve:
            result["context_curve"] = _context_curve(
                opened, documents, out[wanted.context_curve], stop=stop
            )
        if wanted.html and shown:
            from gru_lm.reporting.report import eval_page

            page = eval_page(
                result,
                title=", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
                blocks=_along(by_block),
                tokens=shown.tokens,
                shown_of=(len(shown.tokens), total.tokens),
            )
            out[wanted.html].write(page.encode())
    return result


def _adapted(
    opened: Opened, documents: Sequence[Document], wanted: Wanted, *, size: int, stop: Stop
) -> dict[str, Any]:
    from gru_lm.adapted import dynamically, with_cache

    rows = []
    if wanted.cache is not None:
        rows.append(
            with_cache(
                opened, documents, given=wanted.cache, tune=wanted.tune, size=size, stop=stop
            )
        )
    if wanted.dynamic:
        rows.append(
            dynamically(
                opened,
                documents,
                method=wanted.dynamic,
                given=wanted.dynamic_settings,
                tune=wanted.tune,
                size=size,
                stop=stop,
            )
        )
    return {"adapted": rows} if rows else {}


def _context_curve(
    opened: Opened, documents: Sequence[Document], file: BinaryIO, *, stop: Stop
) -> dict[str, Any]:
    import numpy as np

    from gru_lm.evaluation.adaptation import beginning
    from gru_lm.evaluation.context import context_curve
    from gru_lm.evaluation.texts import Reading
    from gru_lm.reporting import console
    from gru_lm.reporting.plots import context_png

    text, _ = beginning(Reading(opened.tokenizer, documents).sequences(), MOST_OF_CONTEXT)
    with console.progress("measuring the use of context", 1.0) as advance:
        curve = context_curve(
            opened.model,
            [np.concatenate(chunks) for _, chunks in text],
            newline_id=opened.tokenizer.newline_id,
            stop=stop,
            progress=advance,
        )
    found = curve.as_dict()
    file.write(context_png(found, f"{curve.targets:,} targets"))
    return found


def _along(by_block: ByBlock) -> list[tuple[int, float]]:
    """How many tokens were read up to each block's end, and its bits per byte."""
    found, read = [], 0
    for nats, size, tokens in by_block.sums():
        read += int(tokens)
        if size:
            found.append((read, float(nats / math.log(2) / size)))
    return found
