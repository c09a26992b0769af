"""What a comparison of cells comes to: figures, differences, verdicts, and what limits them.

Pure functions of the record and of what was measured of each run.
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
HELD_OUT = {"test": "the test text", "valid": "the validation text"}


def outcome(directory: Path, record: Record, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `compare --json` prints of a comparison whose runs are all done."""
    asked = record.question
    sums = {cell: [row["blocks"] for row in rows if row["cell"] == cell] for cell in asked.cells}
    differences = cells_differences(sums, at=f"at equal {asked.match}", by=trained_how(record))
    found = [caveat for row in rows for caveat in row["caveats"]]
    found += limits(record, rows)
    return {
        "cells": list(asked.cells),
        "match": asked.match,
        "seeds": asked.seeds,
        "minutes": asked.settings.minutes,
        "budget": {n: v for n, v in asked.settings.given().items() if n in BUDGETS},
        "on": HELD_OUT[record.part],
        "difference": differences[0],
        "differences": differences,
        "verdict": ". ".join(dict.fromkeys(each["verdict"] for each in differences)),
        "caveats": list(dict.fromkeys(found)),
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
    """How the cells came to their learning rates: the end of every verdict."""
    by_time = record.question.match == "time"
    if record.question.settings.lr is not None:
        plans = "each by the planner's own plan for its cell, " if by_time else ""
        return f"{plans}all at the learning rate that was given"
    if by_time:
        return "each by the planner's own plan for its cell, tuned on no text of yours"
    if record.format == 1:
        return "each at the planner's rate, tuned on GRUs and on no text of yours"
    return "each at the planner's rate for its cell, tuned on no text of yours"


def limits(record: Record, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What makes a comparison less fair or less sure than it might be."""
    asked = record.question
    if asked.seeds < ENOUGH_SEEDS:
        several = asked.seeds > 1
        few = f"{asked.seeds} seeds of each cell are few" if several else "one seed is too few"
        yield f"{few}: take {ENOUGH_SEEDS} before relying on it"
    if record.part == "valid":
        yield (
            "measured on the validation text, which chose each run's best checkpoint: for a test "
            "part, --split 0.8,0.1,0.1 or --test FILE"
        )
    if (test := asked.settings.test) is not None and test == asked.settings.valid:
        yield f"measured on {test}, which chose each run's best checkpoint"
    if test in asked.settings.text:
        yield f"measured on {test}, which the cells were trained on"
    if record.mismatch > AGREEMENT:
        yield (
            f"{asked.match} differ by {record.mismatch:.1%}: no width is nearer to that of the given "
            "--width; without it, the planner chooses widths that agree"
        )
    if asked.match != "time" and len(tokens := {row["tokens"] for row in rows}) > 1:
        yield f"not all runs trained on as many tokens: {min(tokens):,} to {max(tokens):,}"
