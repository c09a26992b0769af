"""Lists in `gru-lm eval`: which options they allow, and their records opened and surveyed.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation import MODES, RECORDS
from gru_lm.signals import Stop
from gru_lm.text.listing import RecordDocument, survey_records
from gru_lm.text.parts import ListPart
from gru_lm.text.records import FILE, PARAGRAPH, ROW, Form

if TYPE_CHECKING:
    from gru_lm.commands.eval.options import Outputs
    from gru_lm.text.documents import Document


def checked_form(
    run: Path, config: Mapping[str, Any], mode: str | None, outputs: Outputs
) -> tuple[Form | None, str]:
    """The form of a run's records and the mode of scoring, by default that of the run.

    `config`: its settings, as in a checkpoint. Raises UsageError if a mode or an output does not fit.
    """
    form = Form.of(config)
    _check_outputs(run, form, outputs)
    if form is None and mode == RECORDS:
        raise UsageError(
            f"--mode {RECORDS} is for runs of records, and {run} was trained on running text",
            hint="--mode line scores each line from the model's start",
        )
    if form is not None and mode not in (None, RECORDS):
        raise UsageError(
            f"--mode {mode} is for running text, and {run} was trained on records",
            why="the model knows each record from its start to its end only",
            hint="leave --mode out",
        )
    return form, mode or (MODES[0] if form is None else RECORDS)


def _check_outputs(run: Path, form: Form | None, outputs: Outputs) -> None:
    if form is None:
        if outputs.strangest:
            raise UsageError(
                f"--strangest is for runs of records, and {run} was trained on running text",
                hint="gru-lm train FILE --records line",
            )
        unit = None
    else:
        unit = form.unit
        for option, is_given, why in (
            ("--cache", outputs.cache is not None, "a cache is filled by the text before"),
            ("--dynamic", outputs.dynamic, "it learns from the text before"),
            ("--context-curve", outputs.context_curve, "a record has no context but itself"),
            ("--interpolate", outputs.interpolate, "n-grams are mixed with models of text"),
            ("--as lm-eval", outputs.convention == "lm-eval", "it scores no ends of texts"),
        ):
            if is_given:
                raise UsageError(
                    f"{option} is for running text, and {run} was trained on records",
                    why=why,
                    hint=f"leave {option} out",
                )
        if outputs.convention and unit in (PARAGRAPH, FILE):
            raise UsageError(
                f"--as {outputs.convention} is for sentences, not for a {unit} each",
                hint=f"leave --as {outputs.convention} out",
            )
    if outputs.id_column is not None and unit != ROW:
        what = "running text" if unit is None else f"one record for each {unit}"
        raise UsageError(
            f"--id names a column of a table, and {run} was trained on {what}",
            hint="leave --id out: --per-line has the line of each record",
        )


def open_list(documents: Sequence[Document], form: Form, *, stop: Stop) -> ListPart:
    """All records of some files. Raises InputError if they cannot be read, or if there are none."""
    from gru_lm.reporting import console

    with console.progress("reading", None) as advance:
        listing = survey_records(
            documents, dataclasses.replace(form, group=None), stop=stop, progress=advance
        )
    if not len(listing.keys_N):
        names = ", ".join(document.name for document in documents)
        raise InputError(
            f"no records in {names}",
            why=f"{listing.empty:,} empty ones" if listing.empty else None,
            hint="name a file with records, as the run was trained on",
        )
    if listing.empty:
        records = "records" if listing.empty > 1 else "record"
        console.note(f"{listing.empty:,} empty {records} skipped")
    return ListPart.of(listing, np.ones(len(listing.keys_N), bool), name="all")


def check_column(part: ListPart, name: str) -> None:
    """Raise InputError if one of the tables lacks this column."""
    for document in part.documents:
        if isinstance(document, RecordDocument):
            next(document.blocks([name]), None)
