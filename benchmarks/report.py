"""A measured figure, as a line of the table and as an object of the JSON file."""

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
    """A figure of the table (`number` names its row), or without a figure a line of detail."""

    number: str
    label: str
    figure: float | None = None
    bar: float | None = None  # at least this is wanted, or at most where `most`
    most: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.figure is None:
            return f"      {self.label}"
        wanted = ""
        if self.bar is not None:
            met = self.figure <= self.bar if self.most else self.figure >= self.bar
            bound = "at most" if self.most else "at least"
            wanted = f"{bound} {self.bar:g}: {'met' if met else 'MISSED'}"
        return f"{self.number:>4}  {self.label:<58}{self.figure:>9.2f}  {wanted}"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
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
    """Print each row as it comes; write all of them to `path`."""
    found = marked({"machine": machine(), "rows": []})
    print(json.dumps(found["machine"]), flush=True)
    for row in rows:
        print(row, flush=True)
        found["rows"].append(asdict(row))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path}")
