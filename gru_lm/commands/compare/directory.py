"""The directory of a comparison of cells: what is asked, what was planned, what is done.

    compare.json                  the question and the plans, fixed before the first run
    piped.txt                     the text, if it was piped in
    <cell>-<seed>/                the runs
    results/<cell>-<seed>.json    what was measured of a run that is complete
    result.json curves.png report.html
    .lock                         held (flock) as long as a process works on it

A comparison exists from its compare.json on; what never got there is removed. What is in the directory
says what is left to do, so a comparison goes on wherever it was interrupted. Knows no text and no model.
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
from gru_lm.config import BUDGETS, Settings, settings
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
from gru_lm.text.sources import HEAD
from gru_lm.training import folder
from gru_lm.training.plan import Plan

MATCHES = ("parameters", "width", "arithmetic", "time")
OWN = ("cell", "width", "lr")  # what matched cells have of their own
DEFAULTS = {"cells": ["gru", "lstm"], "match": "parameters", "seeds": 3}
ROW = ("width", "parameters", "steps", "tokens", "seconds", "tokens_per_second", "bits_per_byte")
MINUTES = 1.0  # a run, where no budget is given
SPLIT = "0.8,0.1,0.1"  # where nothing is said of held-out text: the test part has chosen nothing
FORMAT = 2  # of compare.json; 1: cells had plans of their own, and no test part was held out


@dataclass(frozen=True, kw_only=True)
class Question:
    """All that identifies a comparison. Raises UsageError where it makes no sense."""

    cells: tuple[str, ...]
    match: str
    seeds: int
    settings: Settings  # those given; of all runs

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Question:
        """What was asked for by name, settings among it; the rest is as usual."""
        values = {**DEFAULTS, **asked}
        cells, match, seeds = (values.pop(name) for name in DEFAULTS)
        instead_of = {
            "cell": "--cells gru,lstm",
            "seed": "--seeds 3",
            "start_from": "leave it out: its runs begin with random weights",
        }
        for name, instead in instead_of.items():
            if name in values:
                raise UsageError(f"--{name} does not go with compare", hint=instead)
        budgets = [name for name in BUDGETS if values.get(name)]
        if match == "time" and budgets not in ([], ["minutes"]):
            raise UsageError("--match time goes with --minutes alone", hint="--minutes 1")
        usual: dict[str, Any] = {} if budgets else {"minutes": MINUTES}
        if not any(values.get(name) for name in ("split", "valid", "test")):
            usual["split"] = SPLIT
        return cls(cells=tuple(cells), match=match, seeds=seeds, settings=settings(usual, values))

    def __post_init__(self) -> None:
        if len(set(self.cells)) < max(2, len(self.cells)):
            raise UsageError(
                f"--cells {','.join(self.cells)}: not two different cells or more",
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
        """The same by name, as plain values."""
        values = self.settings.given() | {"match": self.match, "seeds": self.seeds}
        del values["seed"]  # which each run has of its own
        return values | {"cells": list(self.cells)}

    def alike(self, other: Question) -> bool:
        """Whether both ask the same question; the order of the cells does not matter."""
        return set(self.cells) == set(other.cells) and self == replace(other, cells=self.cells)


@dataclass(frozen=True, kw_only=True)
class Record:
    """compare.json: what all processes that work on a comparison go by."""

    asked: dict[str, Any]  # the question, by name
    plans: dict[str, dict[str, Any]]  # complete settings for each cell
    parameters: dict[str, int]
    kind: str  # of the tokenizer
    tokenizer: str  # its fingerprint
    data: dict[str, str]  # fingerprints of the parts of the text
    part: str  # "test" or "valid": what all are measured on
    spacing: bool = False  # whether runs count the white space of their text; False in old records
    mismatch: float = 0.0  # of what is matched: by what share the largest exceeds the smallest
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
        """What a cell is trained with, but for the seed."""
        return settings(self.plans[cell])

    def assert_fair(self) -> None:
        """That the plans differ in nothing but what each cell is to have of its own."""
        by_time = self.question.match == "time"
        own = {field.name for field in fields(Plan)} if by_time else {*OWN}
        first, *others = (
            {name: value for name, value in plan.items() if name not in own}
            for plan in self.plans.values()
        )
        assert all(plan == first for plan in others), "cells are not trained alike"

    def runs(self) -> list[tuple[str, int]]:
        """Cell and seed of every run, in order: as the machine changes, it does so for all cells."""
        asked = self.question
        return [(cell, seed) for seed in range(asked.seeds) for cell in asked.cells]


@dataclass(frozen=True)
class Comparison:
    """A directory that this process, and no other, works on."""

    directory: Path
    made: list[Path] = field(default_factory=list)  # what this process made, until it has begun

    @classmethod
    @contextmanager
    def opened(cls, out: Path | None, asked: Mapping[str, Any]) -> Iterator[Comparison]:
        """The directory `out`, new or begun; None: compare-<n>, begun with this very question, or new.

        Raises UsageError where it holds something else, another comparison too.
        """
        directory = out or _unnamed(asked)
        made = folder.make(directory)
        if not ((directory / RECORD).exists() or is_free(directory)):
            raise UsageError(
                f"--out {directory} holds other files, and no comparison",
                hint="name a directory of its own",
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

    def begun(self, asked: Mapping[str, Any]) -> Record | None:
        """What was planned, if it was. Raises UsageError where other things were asked then."""
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
                    f"{self.directory} holds another comparison: {flag} is "
                    f"{_shown(known.get(name))} there, not {_shown(value)}",
                    hint=f"another --out; to go on: gru-lm compare --out {self.directory}",
                )
        return record

    def begin(self, record: Record) -> None:
        """Put the plans there, which must be fair: from here on it is a comparison."""
        record.assert_fair()
        values = asdict(record)
        del values["question"]
        write_json(self.directory / RECORD, values)

    def run(self, cell: str, seed: int) -> Path:
        """Where a run lies, or will; not where one lies that was killed before its first checkpoint."""
        names = (f"{cell}-{seed}" + (f"-{n}" if n > 1 else "") for n in count(1))
        return next(
            path
            for name in names
            if holds_checkpoint(path := self.directory / name) or is_free(path)
        )

    def measured(self, cell: str, seed: int) -> dict[str, Any] | None:
        """What was measured of a run, once it is complete; None where that cannot be read."""
        path = self.directory / RESULTS / f"{cell}-{seed}.json"
        with suppress(OSError, ValueError, RecursionError):
            values = json.loads(path.read_text(encoding="utf-8"))
            if _is_row(values, cell, seed):
                return {name: value for name, value in values.items() if name != JSON_MARK}
        return None

    def complete(self, cell: str, seed: int, values: dict[str, Any]) -> None:
        """Note what was measured of a run: it is complete."""
        results = self.directory / RESULTS
        if results.is_symlink():
            raise EnvironmentProblem(
                f"{results} is a link, and links are not followed", hint=f"mv {results} elsewhere"
            )
        results.mkdir(exist_ok=True)
        write_json(results / f"{cell}-{seed}.json", values)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file by a JSON object, marked as ours."""
    atomic.write_bytes(path, json.dumps(marked(values), indent=1).encode())


@contextmanager
def made_for_models(out: Path | None) -> Iterator[None]:
    """The directory of a comparison of finished models, removed again where that fails.

    Raises UsageError where it holds something else.
    """
    made = []
    if out:
        of_cells = (out / RECORD).exists()
        if of_cells or any(map(_is_foreign, (out / PAGE, out / RESULT))):
            holds = (
                "a comparison of cells" if of_cells else f"a {PAGE} or {RESULT} of something else"
            )
            raise UsageError(f"--out {out} holds {holds}", hint="name another directory")
        made = folder.make(out)
    try:
        yield
    except BaseException:
        folder.remove(made)
        raise


def _is_foreign(path: Path) -> bool:
    """Whether something lies at `path` that gru-lm did not write."""
    if not os.path.lexists(path):
        return False
    if not folder.is_plain(path):
        return True
    with path.open("rb") as file:
        return not begins_as_ours(file.read(HEAD))


def _is_row(values: Any, cell: str, seed: int) -> bool:
    """Whether `values` have what is reported of a run, whoever wrote them."""
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
    """compare-<n>, the first that was begun with this question and is not finished, or is free."""
    question = Question.of(asked)
    before = Question.of({"split": Settings.split, **asked})  # of format 1
    for number in count(1):
        directory = Path(f"compare-{number}")
        if is_free(directory):
            return directory
        # Of text that was piped in nobody can tell whether it is the same.
        if not question.settings.reads_stdin() and not (directory / RESULT).exists():
            with suppress(InputError):
                known = _read(directory)
                if known.question.alike(question if known.format > 1 else before):
                    return directory
    raise AssertionError


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
