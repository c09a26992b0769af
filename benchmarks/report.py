"""Rows of a benchmark: one line each in the printed table, and one object each in the JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gru_lm.reporting.console import marked

LIBRARIES = ("gru-lm", "torch", "sentencepiece", "numpy")


@dataclass(frozen=True, kw_only=False)
class Row:
    """A figure in row `number` of the table, or a detail line without a figure."""

    number: str
    label: str
    figure: float | None = None
    bar: float | None = None  # target: a minimum, or a maximum if `most`
    most: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.figure is None:
            return f"      {self.label}"
        target = ""
        if self.bar is not None:
            met = self.figure <= self.bar if self.most else self.figure >= self.bar
            bound = "at most" if self.most else "at least"
            target = f"{bound} {self.bar:g}: {'met' if met else 'MISSED'}"
        return f"{self.number:>4}  {self.label:<58}{self.figure:>9.2f}  {target}"


def machine() -> dict[str, Any]:
    """Hardware and software on which the figures depend."""
    import torch

    cpu = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    return {
        "processor": cpu,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def show(rows: Iterable[Row], path: Path) -> None:
    """Print each row as soon as it is measured, and write all rows so far to `path`."""
    results = marked({"machine": machine(), "rows": []})
    print(json.dumps(results["machine"]), flush=True)
    for row in rows:
        print(row, flush=True)
        results["rows"].append(asdict(row))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {path}")
