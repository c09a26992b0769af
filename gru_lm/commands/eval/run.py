"""Evaluate a run on texts: all measurements of `gru-lm eval`, as one plain dictionary.

The plain figures come first; optional measurements are added under separate keys and never mixed into
them. Prints no results.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_lm.commands.eval.options import Outputs, check_outputs
from gru_lm.errors import UsageError, unknown_name
from gru_lm.evaluation import CONVENTIONS, MODES, RECORDS
from gru_lm.evaluation.metrics import Counts, caveats, unseen_returns
from gru_lm.signals import Stop, never

if TYPE_CHECKING:
    from gru_lm.commands.eval.outputs import Collectors
    from gru_lm.commands.load import LoadedModel
    from gru_lm.text.documents import Document
    from gru_lm.text.parts import ListPart, Part


def evaluate(
    run: Path,
    files: Sequence[str] = (),
    *,
    mode: str | None = None,
    batch: int | None = None,
    chunk: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    encoding: str = "utf-8",
    outputs: Outputs | None = None,
    stop: Stop = never,
) -> dict[str, Any]:
    """Score `files`, or the run's own held-out text; returns the result of `eval --json`.

    A run of records reads lists in its own form; the default `mode` is then "records", else "stream".
    With minimal pairs and no files, only the pairs are scored. `stop` is polled and raises Stopped.
    Raises a GruLmError for user errors; existing output files are then unchanged.
    """
    outputs = outputs or Outputs()
    _check_usage(run, files, mode, encoding, outputs)

    from gru_lm.commands.eval.lists import checked_form, open_list
    from gru_lm.reporting import console
    from gru_lm.text.parts import ListPart
    from gru_lm.text.sources import open_documents, spool_stdin
    from gru_lm.training import directory as run_directory

    with tempfile.TemporaryDirectory(prefix="gru-lm-") as folder:
        checkpoint = run_directory.find(run, console.warn)
        form, mode = checked_form(run, checkpoint.meta["config"], mode, outputs)
        stdin = Path(folder) / "stdin"
        documents: list[Document] = []
        part: Part | None = None
        if files:
            if "-" in files:
                spool_stdin(stdin, stop=stop)
            documents = open_documents(
                files, encoding=encoding, form=form, stdin=stdin, stop=stop, note=console.note
            )
        # Torch is imported only after the checks above.
        from gru_lm.commands.eval.adaptive import check_settings
        from gru_lm.commands.load import load_model, own_text

        check_settings(
            cache=outputs.cache, method=outputs.dynamic, dynamic=outputs.dynamic_settings
        )
        loaded = load_model(checkpoint, device=device, threads=threads, stop=stop)
        if not files and not outputs.pairs:
            part = own_text(loaded, "valid", stop=stop)
        elif form and documents:
            part = open_list(documents, form, stop=stop)
        documents = list(part.documents) if part else documents
        check_outputs(outputs, documents)
        records = part if isinstance(part, ListPart) else None
        size, notes = _surveyed(loaded, documents, records, outputs, is_own=not files, stop=stop)
        if outputs.dynamic == "rms":
            own_text(loaded, "train", stop=stop)
        result: dict[str, Any] = {
            "checkpoint": str(checkpoint.path),
            "device": str(loaded.device),
            "caveats": notes,
        }
        if outputs.pairs:
            result["pairs"] = pairs = _pairs(loaded, outputs.pairs, stop=stop)
            notes += caveats(loaded.tokenizer, pairs["unknown_rate"], of="the pairs")
        if documents:
            result = _on_texts(
                loaded,
                documents,
                records,
                result,
                size=size,
                mode=mode,
                batch=batch,
                chunk=chunk,
                outputs=outputs,
                stop=stop,
            )
    return result


def _surveyed(
    loaded: LoadedModel,
    documents: Sequence[Document],
    records: ListPart | None,
    outputs: Outputs,
    *,
    is_own: bool,
    stop: Stop,
) -> tuple[int, list[str]]:
    """The size of the text, for progress, and caveats. Raises InputError if it is unreadable."""
    from gru_lm.commands.eval.contamination import record_caveats, text_caveats
    from gru_lm.commands.eval.lists import check_column
    from gru_lm.reporting import console
    from gru_lm.text.documents import survey

    if records:
        if outputs.id_column is not None:
            check_column(records, outputs.id_column)
        notes = unseen_returns(records.returns, loaded.seen, of="the list")
        notes += record_caveats(loaded, records, is_own=is_own, stop=stop)
        return records.characters, notes
    with console.progress("reading", None) as advance:
        text = survey(documents, stop=stop, progress=advance)
    notes = unseen_returns(text.carriage_returns, loaded.seen)
    is_tuned = outputs.tune or bool(outputs.interpolate and outputs.weight is None)
    notes += text_caveats(loaded, documents, is_own=is_own, is_tuned=is_tuned, stop=stop)
    return text.bytes, notes


def _check_usage(
    run: Path, files: Sequence[str], mode: str | None, encoding: str, outputs: Outputs
) -> None:
    """Raise UsageError for conflicting options, before reading anything."""
    if mode not in (None, *MODES, RECORDS):
        raise unknown_name("mode", mode or "", (*MODES, RECORDS))
    if outputs.convention not in (None, *CONVENTIONS):
        raise unknown_name("convention", outputs.convention or "", CONVENTIONS)
    if outputs.pairs and not files and outputs != Outputs(pairs=outputs.pairs):
        raise UsageError(
            "--pairs without a FILE allows no other optional outputs",
            hint=f"name a text too: gru-lm eval {run} FILE --pairs {outputs.pairs}",
        )
    if not files and encoding != "utf-8":
        raise UsageError(
            "--encoding has no effect without a FILE", hint="name one, or leave --encoding out"
        )
    if outputs.pairs and not files and mode not in (None, MODES[0]):
        raise UsageError(f"--mode {mode} is for texts, not pairs", hint="leave --mode out")
    if mode not in (None, MODES[0]) and (outputs.cache is not None or outputs.dynamic):
        raise UsageError(
            f"--cache and --dynamic need --mode stream, not {mode}", hint="leave --mode out"
        )


def _pairs(loaded: LoadedModel, path: Path, *, stop: Stop) -> dict[str, Any]:
    """The accuracy of the model on minimal pairs."""
    from gru_lm.evaluation.minimal_pairs import judged, read_pairs, score_pairs
    from gru_lm.reporting import console
    from gru_lm.text.records import Form

    pairs = read_pairs(path, stop=stop)
    # To a model of records, a sentence is a record.
    end_id = loaded.tokenizer.end_id if Form.of(loaded.checkpoint.meta["config"]) else None
    with console.progress("judging pairs", 2 * len(pairs)) as advance:
        scores = score_pairs(
            loaded.model, loaded.tokenizer, pairs, end_id=end_id, stop=stop, progress=advance
        )
    return judged(pairs, scores)


def _on_texts(
    loaded: LoadedModel,
    documents: Sequence[Document],
    records: ListPart | None,
    result: dict[str, Any],
    *,
    size: int,
    mode: str,
    batch: int | None,
    chunk: int | None,
    outputs: Outputs,
    stop: Stop,
) -> dict[str, Any]:
    """Add the figures of the documents to `result`, and write all output files."""
    from gru_lm import atomic
    from gru_lm.commands.eval.ngrams import Interpolation
    from gru_lm.commands.eval.outputs import Collectors
    from gru_lm.reporting import console

    with ExitStack() as stack:
        # Open all output files first, so that an unwritable one fails before scoring starts.
        files = {path: stack.enter_context(atomic.replacing(path)) for path in outputs.files()}
        ngrams = mixture = None
        if outputs.interpolate:
            ngrams = Interpolation(loaded, outputs.interpolate, weight=outputs.weight, stop=stop)
            mixture = ngrams.mixture()
        collectors = Collectors(outputs, loaded.tokenizer, documents, files, mixture, records)
        started = time.monotonic()
        with console.progress("scoring", size) as advance:
            counts = collectors.measure(
                loaded, mode=mode, batch=batch, chunk=chunk, stop=stop, progress=advance
            )
        seconds = time.monotonic() - started
        collectors.finish()
        total = sum(counts, Counts())
        result = _plain(collectors, counts, mode=mode, seconds=seconds) | result
        result["caveats"] += caveats(
            loaded.tokenizer,
            total.unknown_rate(),
            of="the list" if records else "the text",
            several=len(documents) > 1,
        )
        if outputs.convention:
            result["as"], notes = collectors.convention(total)
            result["caveats"] += notes
        if outputs.baselines:
            result["baselines"] = collectors.baselines(total, stop=stop)
        if ngrams and mixture:
            result |= ngrams.rows(mixture, documents, total)
            result["caveats"] += ngrams.caveats()
        result |= _adapted(loaded, documents, outputs, size=size, stop=stop)
        if collectors.strangest:
            result["strangest"] = collectors.strangest.rows()
        if outputs.context_curve:
            result["context_curve"] = collectors.context_curve(loaded, stop=stop)
        collectors.write_page(result, total)
    return result


def _plain(
    collectors: Collectors, counts: Sequence[Counts], *, mode: str, seconds: float
) -> dict[str, Any]:
    """The plain figures of all documents together, and of each if there are several."""
    total = sum(counts, Counts())
    interval = collectors.interval().interval
    result: dict[str, Any] = {
        **total.figures(),
        "ci95": interval and list(interval),
        "mode": mode,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(total.tokens / seconds, 1) if seconds else None,
    }
    if len(counts) > 1:
        names = collectors.names()
        result["files"] = [
            {"file": name, **each.figures()} for name, each in zip(names, counts, strict=True)
        ]
    return result


def _adapted(
    loaded: LoadedModel, documents: Sequence[Document], outputs: Outputs, *, size: int, stop: Stop
) -> dict[str, Any]:
    from gru_lm.commands.eval.adaptive import dynamically, with_cache

    rows = []
    if outputs.cache is not None:
        rows.append(
            with_cache(
                loaded, documents, given=outputs.cache, tune=outputs.tune, size=size, stop=stop
            )
        )
    if outputs.dynamic:
        rows.append(
            dynamically(
                loaded,
                documents,
                method=outputs.dynamic,
                given=outputs.dynamic_settings,
                tune=outputs.tune,
                size=size,
                stop=stop,
            )
        )
    return {"adapted": rows} if rows else {}
