"""Compare two finished models on the same texts or list.

Statistics are in evaluation/paired.py and statistics.py. Prints no results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.commands.compare.directory import made_for_models, write_json
from gru_lm.commands.compare.scoring import scored
from gru_lm.commands.eval.contamination import record_caveats, text_caveats
from gru_lm.commands.eval.lists import open_list
from gru_lm.commands.load import load_model
from gru_lm.errors import UsageError
from gru_lm.evaluation.paired import Ends, Groups, charges, models_difference
from gru_lm.layout import PAGE, RESULT
from gru_lm.reporting import console
from gru_lm.reporting.report import compare_page
from gru_lm.signals import Stop, never
from gru_lm.text.documents import survey
from gru_lm.text.records import ROW, Form
from gru_lm.text.sources import open_documents, spool_stdin
from gru_lm.training import directory as run_directory
from gru_lm.training.checkpoint import Checkpoint


def compare_models(
    models: tuple[Path, Path],
    on: Sequence[str],
    *,
    out: Path | None = None,
    encoding: str = "utf-8",
    device: str = "auto",
    threads: int | None = None,
    stop: Stop = never,
) -> dict[str, Any]:
    """Measure two finished models, with any tokenizers, on the same texts; returns the result.

    Both score every document as a stream or, if they were trained on records of the same form, every
    record from its start. With `out`, a directory, also writes report and result there. Raises a
    GruLmError for user errors.
    """
    checkpoints = [run_directory.find(path, console.warn) for path in models]
    form = _common_form(models, checkpoints)
    with made_for_models(out), tempfile.TemporaryDirectory(prefix="gru-lm-") as temporary:
        stdin = Path(temporary) / "stdin"
        if "-" in on:
            spool_stdin(stdin, stop=stop)
        documents = open_documents(
            on, encoding=encoding, form=form, stdin=stdin, stop=stop, note=console.note
        )
        records = open_list(documents, form, stop=stop) if form else None
        if records:
            documents, size = [*records.documents], records.characters
        else:
            with console.progress("reading", None) as advance:
                size = survey(documents, stop=stop, progress=advance).bytes
        both = [load_model(each, device=device, threads=threads) for each in checkpoints]
        # Ends of documents are scored by both models or by neither.
        ends_documents = all(each.tokenizer.ends_documents for each in both)
        sides: list[dict[str, Any]] = []
        tables: list[Ends | Groups] = []
        for path, checkpoint, opened in zip(models, checkpoints, both, strict=True):
            opened.tokenizer.ends_documents = ends_documents
            tables.append(Groups() if records else Ends(len(documents)))
            if records:
                known = record_caveats(opened, records, is_own=False, stop=stop)
            else:
                known = text_caveats(opened, documents, is_own=False, is_tuned=False, stop=stop)
            sides.append(
                {
                    "name": str(path),
                    **scored(opened, documents, tables[-1], of=str(path), size=size, stop=stop),
                    "parameters": opened.model.parameter_count(),
                    "width": opened.model.config.width,
                    "tokenizer": opened.tokenizer.kind,
                    "checkpoint": str(checkpoint.path),
                }
            )
            sides[-1]["caveats"] += [f"{path}: {caveat}" for caveat in known]
    result = _result(sides, tables, on, out)
    if out:
        atomic.write_bytes(out / PAGE, compare_page(result, None).encode())
        write_json(out / RESULT, result)
    return result


def _result(
    sides: Sequence[dict[str, Any]],
    tables: Sequence[Ends | Groups],
    on: Sequence[str],
    out: Path | None,
) -> dict[str, Any]:
    (a, b), (of_a, of_b) = sides, tables
    difference = models_difference((a["name"], of_a), (b["name"], of_b))
    caveats = [*(each for side in sides for each in side.pop("caveats")), *charges(sides)]
    return {
        "a": a,
        "b": b,
        "on": ", ".join(on),
        "difference": difference,
        "differences": [difference],
        "verdict": difference["verdict"],
        "caveats": list(dict.fromkeys(caveats)),
        "report": str(out / PAGE) if out else None,
    }


def _common_form(models: Sequence[Path], checkpoints: Sequence[Checkpoint]) -> Form | None:
    """The form of the records that both were trained on; None for running text.

    Raises UsageError if they were not trained on the same form.
    """
    a, b = (Form.of(each.meta["config"]) for each in checkpoints)
    if (a and (a.unit, a.field)) == (b and (b.unit, b.field)):
        return a
    said = [f"{path} on {_described(form)}" for path, form in zip(models, (a, b), strict=True)]
    if a is None or b is None:
        why = "one predicts each record from its start, the other each line from those before"
    else:
        why = "their records are different parts of a file"
    raise UsageError(
        f"the runs were trained on different forms of text: {said[0]}, {said[1]}",
        why=why,
        hint="train both with the same --records or --field",
    )


def _described(form: Form | None) -> str:
    if form is None:
        return "running text"
    return (
        f"records of the field {form.field!r}"
        if form.unit == ROW
        else f"records, a {form.unit} each"
    )
