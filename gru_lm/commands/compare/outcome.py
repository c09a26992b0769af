"""Result of a comparison of cells: figures, differences, verdicts and caveats.

Pure functions of the record and the measurements of each run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gru_lm.commands.compare.directory import Comparison, Record
from gru_lm.commands.compare.matching import AGREEMENT
from gru_lm.config import BUDGETS
from gru_lm.evaluation.paired import cells_differences
from gru_lm.layout import BEST, CURVES, PAGE

ENOUGH_SEEDS = 5
HELD_OUT = {"test": "the test", "valid": "the validation"}


def outcome(directory: Path, record: Record, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result printed by `compare --json`, once all runs are completed."""
    question = record.question
    sums = {cell: [row["blocks"] for row in rows if row["cell"] == cell] for cell in question.cells}
    differences = cells_differences(
        sums,
        at=f"at equal {question.match}",
        by=trained_how(record),
        of_records=record.of_records,
    )
    caveats = [caveat for row in rows for caveat in row["caveats"]]
    caveats += limits(record, rows)
    return {
        "cells": list(question.cells),
        "match": question.match,
        "seeds": question.seeds,
        "minutes": question.settings.minutes,
        "budget": {n: v for n, v in question.settings.given().items() if n in BUDGETS},
        "on": f"{HELD_OUT[record.part]} {_text(record)}",
        "difference": differences[0],
        "differences": differences,
        "verdict": ". ".join(dict.fromkeys(each["verdict"] for each in differences)),
        "caveats": list(dict.fromkeys(caveats)),
        "runs": [
            {name: value for name, value in row.items() if name not in ("blocks", "caveats")}
            | {"lr": record.plan(row["cell"]).lr}
            | {"checkpoint": str(Comparison(directory).run(row["cell"], row["seed"]) / BEST)}
            for row in rows
        ],
        "curves": str(directory / CURVES),
        "report": str(directory / PAGE),
    }


def trained_how(record: Record) -> str:
    """The origin of the learning rates, as the end of every verdict."""
    by_time = record.question.match == "time"
    if record.question.settings.lr is not None:
        plans = "each with the planner's own plan for its cell, " if by_time else ""
        return f"{plans}all at the given learning rate"
    if by_time:
        return "each with the planner's own plan for its cell, not tuned on your text"
    if record.format == 1:
        return "each at the planner's rate, tuned on GRUs and not on your text"
    return "each at the planner's rate for its cell, not tuned on your text"


def limits(record: Record, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Caveats about the fairness and the confidence of the comparison."""
    question = record.question
    if question.seeds < ENOUGH_SEEDS:
        several = question.seeds > 1
        few = f"{question.seeds} seeds per cell are few" if several else "one seed is too few"
        yield f"{few}: use at least {ENOUGH_SEEDS} before relying on the verdict"
    if record.part == "valid":
        text = _text(record)
        separate = "separate test records" if record.of_records else "a separate test text"
        yield (
            f"measured on the validation {text}, which also selected each run's best checkpoint; for "
            f"{separate}: --split 0.8,0.1,0.1 or --test FILE"
        )
    if (test := question.settings.test) is not None and test == question.settings.valid:
        yield f"measured on {test}, which also selected each run's best checkpoint"
    if test in question.settings.text:
        yield f"measured on {test}, which the cells were trained on"
    if record.mismatch > AGREEMENT:
        yield (
            f"{question.match} differ by {record.mismatch:.1%}: no width matches the given --width more "
            "closely; without it, the planner chooses matching widths"
        )
    # With another seed, other records of a list are read, whose lengths differ.
    of_seeds = {(row["seed"], row["tokens"]) for row in rows}
    if question.match != "time" and len(of_seeds) > len({seed for seed, _ in of_seeds}):
        tokens = [row["tokens"] for row in rows]
        yield f"runs trained on different numbers of tokens: {min(tokens):,} to {max(tokens):,}"


def _text(record: Record) -> str:
    return "records" if record.of_records else "text"
