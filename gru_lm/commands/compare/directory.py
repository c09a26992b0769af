"""The directory of a comparison of cells.

    compare.json                  the question and the plans, fixed before the first run
    piped.txt                     the text, if piped in; for a table, piped.csv, .tsv or .jsonl
    <cell>-<seed>/                the runs
    results/<cell>-<seed>.json    measurements of a completed run
    result.json curves.png report.html
    .lock                         held (flock) by the process working on the comparison

A comparison exists once its compare.json is written; until then, a failure removes what was created.
Progress is derived from the files alone, so an interrupted comparison can always be resumed. Handles no
text or model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.config import BUDGETS, Settings
from gru_lm.config_layers import settings
from gru_lm.errors import EnvironmentProblem, GruLmError, InputError, UsageError, unknown_name
from gru_lm.layout import (
    JSON_MARK,
    LOCK,
    PAGE,
    RECORD,
    RESULT,
    RESULTS,
    begins_as_ours,
    holds_checkpoint,
    is_free,
)
from gru_lm.model.cells import CELLS
from gru_lm.reporting.console import marked
from gru_lm.text.records import Form
from gru_lm.text.sources import HEAD
from gru_lm.training import folder
from gru_lm.training.plan import Plan

MATCHES = ("parameters", "width", "arithmetic", "time")
OWN = ("cell", "width", "lr")  # settings that differ between matched cells
DEFAULTS = {"cells": ["gru", "lstm"], "match": "parameters", "seeds": 3}
ROW = ("width", "parameters", "steps", "tokens", "seconds", "tokens_per_second", "bits_per_byte")
MINUTES = 1.0  # default budget per run
SPLIT = "0.8,0.1,0.1"  # default: a test part, since validation selects the checkpoints
FORMAT = 2  # of compare.json; in format 1 every cell had its own plan and there was no test part


@dataclass(frozen=True, kw_only=True)
class Question:
    """What identifies a comparison. Raises UsageError if it is invalid."""

    cells: tuple[str, ...]
    match: str
    seeds: int
    settings: Settings  # given for all runs

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Question:
        """The question for `options`, which include settings; the others take their defaults."""
        values = {**DEFAULTS, **options}
        cells, match, seeds = (values.pop(name) for name in DEFAULTS)
        instead_of = {
            "cell": "--cells gru,lstm",
            "seed": "--seeds 3",
            "start_from": "leave it out: the runs start from random weights",
        }
        for name, instead in instead_of.items():
            if name in values:
                raise UsageError(f"--{name} cannot be used with compare", hint=instead)
        budgets = [name for name in BUDGETS if values.get(name)]
        if match == "time" and budgets not in ([], ["minutes"]):
            raise UsageError(
                "--match time requires a budget in --minutes alone", hint="--minutes 1"
            )
        defaults: dict[str, Any] = {} if budgets else {"minutes": MINUTES}
        if not any(values.get(name) for name in ("split", "valid", "test")):
            defaults["split"] = SPLIT
        return cls(
            cells=tuple(cells), match=match, seeds=seeds, settings=settings(defaults, values)
        )

    def __post_init__(self) -> None:
        if len(set(self.cells)) < max(2, len(self.cells)):
            raise UsageError(
                f"--cells {','.join(self.cells)}: at least two cells are needed, all different",
                hint="--cells gru,lstm",
            )
        for cell in self.cells:
            if cell not in CELLS:
                raise unknown_name("cell", cell, CELLS)
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, MATCHES)
        if self.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, not {self.seeds}")

    def named(self) -> dict[str, Any]:
        """The options as plain values, by name; inverse of `of`."""
        values = self.settings.given() | {"match": self.match, "seeds": self.seeds}
        del values["seed"]  # differs between the runs
        return values | {"cells": list(self.cells)}

    def alike(self, other: Question) -> bool:
        """Whether both are the same question, regardless of the order of the cells."""
        return set(self.cells) == set(other.cells) and self == replace(other, cells=self.cells)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The contents of compare.json, which do not change once written."""

    asked: dict[str, Any]  # the question (Question.named)
    plans: dict[str, dict[str, Any]]  # complete settings of each cell
    parameters: dict[str, int]
    kind: str  # of the tokenizer
    tokenizer: str  # fingerprint
    data: dict[str, str]  # fingerprints of the parts of the text
    part: str  # "test" or "valid": the part all runs are measured on
    spacing: bool = False  # whether white space is charged; False in old records
    mismatch: float = 0.0  # in the matched quantity: the largest relative to the smallest, minus 1
    format: int = 1
    question: Question = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "question", Question.of(self.asked))
        for cell in self.question.cells:
            self.plan(cell)
            if type(self.parameters[cell]) is not int:
                raise ValueError(f"parameters of {cell}: {self.parameters[cell]!r}")
        if self.part not in ("test", "valid"):
            raise ValueError(f"part: {self.part!r}")

    def plan(self, cell: str) -> Settings:
        """The complete settings of a cell, except for the seed."""
        plan = self.plans[cell]
        # Plans made before there were records are for running text.
        return settings({} if "field" in plan else {"records": "none"}, plan)

    @property
    def of_records(self) -> bool:
        """Whether the text is a list."""
        return Form.of(self.plans[self.question.cells[0]]) is not None

    def assert_fair(self) -> None:
        """Assert that the plans differ only in settings that may differ between cells."""
        by_time = self.question.match == "time"
        own = {field.name for field in fields(Plan)} if by_time else {*OWN}
        first, *others = (
            {name: value for name, value in plan.items() if name not in own}
            for plan in self.plans.values()
        )
        assert all(plan == first for plan in others), "cells are trained differently"

    def runs(self) -> list[tuple[str, int]]:
        """Cell and seed of every run, in order. Cells alternate, so that changes in load affect all."""
        question = self.question
        return [(cell, seed) for seed in range(question.seeds) for cell in question.cells]


@dataclass(frozen=True)
class Comparison:
    """The directory of a comparison, locked by this process."""

    directory: Path
    made: list[Path] = field(default_factory=list)  # created by this process before compare.json

    @classmethod
    @contextmanager
    def opened(cls, out: Path | None, asked: Mapping[str, Any]) -> Iterator[Comparison]:
        """Open the directory `out`, new or existing, and lock it.

        None: compare-<n>, an unfinished comparison with the same question or else a new one. Raises
        UsageError if `out` contains anything other than a comparison.
        """
        directory = out or _unnamed(asked)
        made = folder.make(directory)
        if not ((directory / RECORD).exists() or is_free(directory)):
            raise UsageError(
                f"--out {directory} contains other files but no comparison",
                hint="choose a new directory",
            )
        is_new = not os.path.lexists(directory / LOCK)
        lock = folder.lock(directory)
        try:
            if is_new:
                made.append(directory / LOCK)
            for each in (directory, directory / RESULTS):
                atomic.sweep(each)
            yield cls(directory, made)
        finally:
            if not (directory / RECORD).exists():
                folder.remove(made)
            os.close(lock)

    def planned(self, asked: Mapping[str, Any]) -> Record | None:
        """The record of a comparison to resume, None if new. Raises UsageError if `asked` differs."""
        if not (self.directory / RECORD).exists():
            return None
        record = _read(self.directory)
        known = record.question.named()
        for name, value in asked.items():
            same = known.get(name) == value
            if name == "cells":
                same = sorted(known[name]) == sorted(value)
            if not same:
                flag = f"--{name.replace('_', '-')}" if name != "text" else "TEXT"
                raise UsageError(
                    f"{self.directory} contains another comparison: its {flag} is "
                    f"{_shown(known.get(name))}, not {_shown(value)}",
                    hint=f"another --out; to resume that one: gru-lm compare --out {self.directory}",
                )
        return record

    def begin(self, record: Record) -> None:
        """Write compare.json. The plans must be fair."""
        record.assert_fair()
        values = asdict(record)
        del values["question"]
        write_json(self.directory / RECORD, values)

    def run(self, cell: str, seed: int) -> Path:
        """The directory of a run; skips those of runs killed before their first checkpoint."""
        names = (f"{cell}-{seed}" + (f"-{n}" if n > 1 else "") for n in count(1))
        return next(
            path
            for name in names
            if holds_checkpoint(path := self.directory / name) or is_free(path)
        )

    def measured(self, cell: str, seed: int) -> dict[str, Any] | None:
        """The measurements of a completed run; None if there are none or they are damaged."""
        path = self.directory / RESULTS / f"{cell}-{seed}.json"
        with suppress(OSError, ValueError, RecursionError):
            values = json.loads(path.read_text(encoding="utf-8"))
            if _is_row(values, cell, seed):
                return {name: value for name, value in values.items() if name != JSON_MARK}
        return None

    def complete(self, cell: str, seed: int, values: dict[str, Any]) -> None:
        """Save the measurements of a run, which marks it as completed."""
        results = self.directory / RESULTS
        if results.is_symlink():
            raise EnvironmentProblem(
                f"{results} is a symbolic link, which is not followed",
                hint=f"mv {results} elsewhere",
            )
        results.mkdir(exist_ok=True)
        write_json(results / f"{cell}-{seed}.json", values)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file with a JSON object that bears our mark."""
    atomic.write_bytes(path, json.dumps(marked(values), indent=1).encode())


@contextmanager
def made_for_models(out: Path | None) -> Iterator[None]:
    """Create the directory of a comparison of finished models; on failure, remove it again.

    Raises UsageError if it contains other results.
    """
    made = []
    if out:
        of_cells = (out / RECORD).exists()
        if of_cells or any(map(_is_foreign, (out / PAGE, out / RESULT))):
            content = (
                "a comparison of cells" if of_cells else f"a {PAGE} or {RESULT} of another program"
            )
            raise UsageError(f"--out {out} contains {content}", hint="choose another directory")
        made = folder.make(out)
    try:
        yield
    except BaseException:
        folder.remove(made)
        raise


def _is_foreign(path: Path) -> bool:
    """Whether `path` exists and was not written by gru-lm."""
    if not os.path.lexists(path):
        return False
    if not folder.is_plain(path):
        return True
    with path.open("rb") as file:
        return not begins_as_ours(file.read(HEAD))


def _is_row(values: Any, cell: str, seed: int) -> bool:
    """Whether `values`, of unknown origin, are valid measurements of this run."""
    try:
        nats, sizes = values["blocks"]["nats"], values["blocks"]["bytes"]
        numbers = [*nats, *sizes, *(values[name] for name in ROW)]
        known = (values["cell"], values["seed"]) == (cell, seed)
        return known and len(nats) == len(sizes) and all(map(_is_number, numbers))
    except (TypeError, KeyError, IndexError):
        return False


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < math.inf)


def _read(directory: Path) -> Record:
    path = directory / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop(JSON_MARK, None)
        return Record(**values)
    except (
        *(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, GruLmError),
    ) as error:
        raise InputError(f"{path} cannot be read", why=str(error)) from error


def _unnamed(asked: Mapping[str, Any]) -> Path:
    """The first compare-<n> that is free, or an unfinished comparison with this question."""
    question = Question.of(asked)
    before = Question.of({"split": Settings.split, **asked})  # of format 1
    for number in count(1):
        directory = Path(f"compare-{number}")
        if is_free(directory):
            return directory
        # Piped-in text cannot be compared with that of an existing comparison.
        if not question.settings.reads_stdin() and not (directory / RESULT).exists():
            with suppress(InputError):
                known = _read(directory)
                if known.question.alike(question if known.format > 1 else before):
                    return directory
    raise AssertionError


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
