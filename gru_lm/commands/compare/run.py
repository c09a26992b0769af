"""Compare cells by training them on the same text or list.

Training is in commands/train/, matching of the cells in matching.py, statistics in evaluation/paired.py
and statistics.py; finished models are compared in models.py. Prints no results. Invariant: an
interrupted and resumed comparison ends with the same runs and figures as an uninterrupted one, except
that with a budget in minutes, the time to resume counts against the interrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.commands.compare.directory import (
    FORMAT,
    MINUTES,
    Comparison,
    Question,
    Record,
    write_json,
)
from gru_lm.commands.compare.matching import fixed, mismatch, parameters, plan_cells
from gru_lm.commands.compare.outcome import outcome
from gru_lm.commands.compare.scoring import scored
from gru_lm.commands.load import load_model, read_again
from gru_lm.commands.train.lists import repeated
from gru_lm.commands.train.run import resume, train
from gru_lm.config import BUDGETS, Settings
from gru_lm.errors import BudgetError, DivergedError, InputError, Stopped
from gru_lm.evaluation.collectors import ByBlock
from gru_lm.evaluation.paired import Groups
from gru_lm.layout import CURVES, PAGE, PIPED, RESULT, holds_checkpoint
from gru_lm.reporting import console
from gru_lm.reporting.plots import curves_png
from gru_lm.reporting.report import compare_page
from gru_lm.signals import Stop, never
from gru_lm.text.documents import Document
from gru_lm.text.records import ROW, Form
from gru_lm.text.sources import open_documents, spool_stdin
from gru_lm.text.tables import FORMATS, piped_format
from gru_lm.training import directory as run_directory
from gru_lm.training import reports


def compare_cells(
    asked: Mapping[str, Any],
    *,
    out: Path | None = None,
    stop: Stop = never,
) -> dict[str, Any]:
    """Train every cell with every seed and measure all runs; returns the result of `compare --json`.

    `asked`: options by name (cells, match, seeds and training settings). `out`: directory of the
    comparison (None: compare-<n>). An existing comparison is resumed; `asked` may then be empty, but
    must not differ. `stop` is polled and raises Stopped. Raises a GruLmError for user errors.
    """
    asked = {
        name.replace("-", "_"): list(value) if isinstance(value, tuple) else value
        for name, value in asked.items()
    }
    with Comparison.opened(out, asked) as comparison:
        directory = comparison.directory
        record = comparison.planned(asked)
        if record:
            console.note(f"resuming {directory}")
        else:
            if not any(asked.get(name) for name in BUDGETS):
                console.note(f"budget: {MINUTES:g} minute per run (change it with --minutes M)")
            record = _planned(comparison, Question.of(asked), stop=stop)
            comparison.begin(record)
        for cell in record.question.cells:
            console.note(_plan_line(cell, record))
        try:
            rows = _rows(comparison, record, stop=stop)
        except Stopped as error:
            error.message = f"stopped by a signal; progress is saved in {directory}"
            error.hint = f"to resume: gru-lm compare --out {directory}"
            error.result = None  # that of a single run
            raise
        result = outcome(directory, record, rows)
        png = curves_png(_curves(comparison, record))
        # Without a budget in minutes, the page shows the mean time per run.
        minutes = result["minutes"] or sum(row["seconds"] for row in rows) / len(rows) / 60
        page = compare_page(result | {"minutes": minutes}, png)
        atomic.write_bytes(directory / CURVES, png)
        atomic.write_bytes(directory / PAGE, page.encode())
        write_json(directory / RESULT, result)
    return result


def _planned(comparison: Comparison, question: Question, *, stop: Stop) -> Record:
    """The plans of a new comparison."""
    config, directory = question.settings, comparison.directory
    if config.reads_stdin():
        copy = directory / PIPED
        comparison.made.append(copy)
        spool_stdin(copy, stop=stop)
        if form := Form.of(config.given()):
            copy = _as_table(copy, form, config.encoding)
            comparison.made.append(copy)

        def copied(spec: str | None) -> str | None:
            return str(copy.absolute()) if spec == "-" else spec

        text = tuple(copied(spec) or "" for spec in config.text)
        config = replace(config, text=text, valid=copied(config.valid), test=copied(config.test))
    prepared = plan_cells(config, question.cells, match=question.match, stop=stop)
    data = prepared[question.cells[0]].data
    return Record(
        asked=question.named(),
        plans={cell: fixed(each, config).given() for cell, each in prepared.items()},
        parameters={cell: parameters(each.model_config()) for cell, each in prepared.items()},
        kind=data.tokenizer.kind,
        tokenizer=data.tokenizer.fingerprint,
        data=data.texts.fingerprints,
        part="test" if data.test else "valid",
        spacing=True,
        mismatch=mismatch(prepared, match=question.match),
        format=FORMAT,
    )


def _as_table(copy: Path, form: Form, encoding: str) -> Path:
    """The copy of standard input; renamed by its format if it is a table, which its name has to tell."""
    if form.unit != ROW:
        return copy
    (document,) = open_documents(["-"], encoding=encoding, form=form, stdin=copy)
    kind = piped_format(document)
    return copy.rename(copy.with_suffix(next(s for s, named in FORMATS.items() if named == kind)))


def _plan_line(cell: str, record: Record) -> str:
    plan = record.plan(cell)
    return (
        f"plan: {cell}: {plan.layers} x {plan.width}, embedding {plan.embed}, "
        f"{record.parameters[cell]:,} parameters, lr {plan.lr:g}, dropout {plan.dropout:g}"
    )


def _rows(comparison: Comparison, record: Record, *, stop: Stop) -> list[dict[str, Any]]:
    """The measurements of all runs; trains and measures those not completed yet."""
    order = record.runs()
    left = [run for run in order if comparison.measured(*run) is None]
    if left:  # repeat measurements made before white space was charged
        left = [run for run in order if "spelling_share" not in (comparison.measured(*run) or {})]
    documents, repeats = _held_out(comparison, record, stop=stop) if left else ((), [])
    started = time.monotonic()
    for done, (cell, seed) in enumerate(left):
        minutes = record.question.settings.minutes or 0
        pace = (time.monotonic() - started) / done if done else 60 * minutes
        seconds = int(pace * (len(left) - done))
        eta = f", about {seconds // 60}:{seconds % 60:02d} left" if seconds else ""
        number = order.index((cell, seed)) + 1
        console.note(f"run {number} of {len(order)}: {cell}, seed {seed}{eta}")
        directory = comparison.run(cell, seed)
        plan = replace(record.plan(cell), seed=seed)
        try:
            if holds_checkpoint(directory):
                trained = resume(directory, with_test=False, stop=stop)
            else:
                trained = train(plan, out=directory, with_test=False, stop=stop)
        except (DivergedError, BudgetError) as error:
            diverged = isinstance(error, DivergedError)
            error.message = f"{cell}, seed {seed}: {error.message}"
            what = "a smaller --lr for all cells" if diverged else "a larger --minutes"
            error.hint = f"start another comparison with {what}"
            raise
        row = {"cell": cell, "seed": seed, "width": plan.width, **_speed(directory, trained)}
        row |= _measured(directory, record, plan, documents, stop=stop)
        row["caveats"] += repeats
        comparison.complete(cell, seed, row)
    return [saved for run in order if (saved := comparison.measured(*run))]


def _held_out(
    comparison: Comparison, record: Record, *, stop: Stop
) -> tuple[tuple[Document, ...], list[str]]:
    """The text all runs are measured on, and caveats about it.

    Raises InputError if any of the texts has changed.
    """
    config = record.plan(record.question.cells[0])
    is_word = record.kind == "word"
    try:
        texts, used = read_again(config, stdin=Path(), is_word=is_word, stop=stop)
    except InputError as error:
        error.hint = error.hint or "restore the text, or start again with another --out"
        raise
    if used.fingerprints != record.data:
        raise InputError(
            f"the text of {comparison.directory} has changed since it was planned",
            why=f"it was read from: {', '.join(config.text)}",
            hint="restore the text, or start again with another --out",
        )
    documents: tuple[Document, ...] = getattr(texts, record.part).documents
    return documents, [said for part, said in repeated(texts).items() if part == record.part]


def _speed(directory: Path, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Size, steps, tokens and speed of a run."""
    logged = [
        m["tokens_per_second"] for m in reports.metrics(directory) if "tokens_per_second" in m
    ]
    speed = trained["tokens_per_second"] or (logged or [None])[-1]  # 0 if no step was left
    totals = {name: trained[name] for name in ("parameters", "steps", "tokens", "seconds")}
    return {**totals, "tokens_per_second": speed}


def _measured(
    directory: Path, record: Record, plan: Settings, documents: Sequence[Document], *, stop: Stop
) -> dict[str, Any]:
    """The figures of a run's best model, and the sums per block behind them."""
    checkpoint = run_directory.find(directory, console.warn)
    opened = load_model(checkpoint, device=plan.device, threads=plan.threads, stop=stop)
    if (opened.tokenizer.fingerprint, checkpoint.meta["data"]) != (record.tokenizer, record.data):
        raise InputError(
            f"{directory} was trained on a different text from the other runs of the comparison",
            hint="restore the text, remove that run and repeat the command",
        )
    if not record.spacing:
        opened = replace(opened, tokenizer=opened.tokenizer.with_spacing(None))
    sums = Groups() if record.of_records else ByBlock()
    what = "the list" if record.of_records else "the text"
    figures = scored(opened, documents, sums, of=what, size=None, stop=stop)
    nats_K, bytes_K = sums.sums()[:, :2].T
    return figures | {"blocks": {"nats": nats_K.tolist(), "bytes": bytes_K.tolist()}}


def _curves(comparison: Comparison, record: Record) -> dict[str, list[list[dict[str, Any]]]]:
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    for cell, seed in record.runs():
        curves.setdefault(cell, []).append(reports.metrics(comparison.run(cell, seed)))
    return curves
