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
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.config import BUDGETS, Settings, settings
from gru_lm.errors import GruLmError, InputError, UsageError, unknown_name
from gru_lm.layout import LOCK, PIPED, RECORD, RESULT, RESULTS
from gru_lm.model.cells import CELLS
from gru_lm.training import directory as run_directory
from gru_lm.training.plan import Plan

MATCHES = ("parameters", "width", "arithmetic", "time")
OWN = ("cell", "width", "lr")  # what matched cells have of their own
DEFAULTS = {"cells": ["gru", "lstm"], "match": "parameters", "seeds": 3}
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
        for name, instead in (("cell", "--cells gru,lstm"), ("seed", "--seeds 3")):
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
        """Whether both ask the same; the order of the cells says nothing."""
        return set(self.cells) == set(other.cells) and self == replace(other, cells=self.cells)

    def is_piped(self) -> bool:
        """Whether any of the text is standard input."""
        return "-" in (*self.settings.text, self.settings.valid, self.settings.test)


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
    mismatch: float = 0.0  # of what is matched: by what share the largest exceeds the smallest
    format: int = 1
    question: Question = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "question", Question.of(self.asked))
        for cell in self.question.cells:
            self.plan(cell)

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

    @classmethod
    @contextmanager
    def opened(cls, out: Path | None, asked: Mapping[str, Any]) -> Iterator[Comparison]:
        """The directory `out`, new or begun; None: compare-<n>, begun with this very question, or new.

        Raises UsageError where it holds something else, another comparison too.
        """
        directory = out or _unnamed(asked)
        ours = not directory.exists()
        run_directory.make_directory(directory)
        if not ((directory / RECORD).exists() or _is_free(directory)):
            raise UsageError(
                f"--out {directory} holds other files, and no comparison",
                hint="name a directory of its own",
            )
        lock = run_directory.lock(directory)
        try:
            for folder in (directory, directory / RESULTS):
                atomic.sweep(folder)
            yield cls(directory)
        finally:
            if not (directory / RECORD).exists():
                for name in (PIPED, LOCK):
                    (directory / name).unlink(missing_ok=True)
                if ours:
                    with suppress(OSError):
                        directory.rmdir()
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
        self.write_json(RECORD, values)

    def run(self, cell: str, seed: int) -> Path:
        """Where a run lies."""
        return self.directory / f"{cell}-{seed}"

    def measured(self, cell: str, seed: int) -> dict[str, Any] | None:
        """What was measured of a run, once it is complete."""
        with suppress(OSError, ValueError):
            path = self.directory / RESULTS / f"{cell}-{seed}.json"
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return values
        return None

    def complete(self, cell: str, seed: int, values: dict[str, Any]) -> None:
        """Note what was measured of a run: it is complete."""
        (self.directory / RESULTS).mkdir(exist_ok=True)
        self.write_json(f"{RESULTS}/{cell}-{seed}.json", values)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Replace a file of the directory."""
        atomic.write_bytes(self.directory / name, json.dumps(values, indent=1).encode())


def _read(directory: Path) -> Record:
    path = directory / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, GruLmError) as error:
        raise InputError(f"{path} cannot be read", why=str(error)) from error


def _unnamed(asked: Mapping[str, Any]) -> Path:
    """compare-<n>, the first that was begun with this question and is not finished, or is free."""
    question = Question.of(asked)
    before = Question.of({"split": Settings.split, **asked})  # of format 1
    for number in count(1):
        directory = Path(f"compare-{number}")
        if _is_free(directory):
            return directory
        # Of text that was piped in nobody can tell whether it is the same.
        if not question.is_piped() and not (directory / RESULT).exists():
            with suppress(InputError):
                known = _read(directory)
                if known.question.alike(question if known.format > 1 else before):
                    return directory
    raise AssertionError


def _is_free(directory: Path) -> bool:
    """Whether there is nothing but what remains of a comparison killed before it began."""
    if not directory.exists():
        return True
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else {""}
    own = {LOCK, PIPED} if LOCK in names else set()
    return all(name in own or name.endswith(".tmp") for name in names)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
