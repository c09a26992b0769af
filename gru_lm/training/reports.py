"""What a run reports of itself: metrics.jsonl and samples.txt, read and cut back.

Users edit such files, and crashes cut them short. Invariant: what is read is whole lines of the types
that a run writes, whatever lies in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gru_lm import atomic
from gru_lm.layout import METRICS, SAMPLES
from gru_lm.signals import unheard
from gru_lm.training.folder import is_plain

SAMPLE = re.compile(rb"^--- step (\d{1,18})\n", re.MULTILINE)
NULLABLE = (
    "grad_norm",
    "valid_bits_per_byte",
    "valid_perplexity",
)  # where there is no finite number
MOST = 1e300  # "not <" refuses NaN and infinity too


def metrics(directory: Path, warn: Callable[[str], None] = unheard) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; what is no line of a run is left out, and counted."""
    path = directory / METRICS
    # A crash may have cut the last one short.
    *lines, last = path.read_bytes().split(b"\n") if is_plain(path) else [b""]
    found = [_report(line) for line in lines]
    if dropped := found.count(None):
        warn(f"{path}: {dropped:,} lines that are not of a run are dropped")
    return [line for line in (*found, _report(last)) if line is not None]


def _report(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for anything that would not be one."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    for name, value in values.items():
        if value is None and name in NULLABLE:
            continue
        whole = name in ("step", "tokens")
        if type(value) not in ((int,) if whole else (int, float)) or not abs(value) < MOST:
            return None
    return values if min(values.get("step", -1), values.get("tokens", -1)) >= 0 else None


def cut_metrics(
    directory: Path, *, step: int, validated_step: int, warn: Callable[[str], None]
) -> None:
    """Drop from metrics.jsonl what came after `step`, and validations after `validated_step`."""
    lines = [
        json.dumps(line) + "\n"
        for line in metrics(directory, warn)
        if line["step"] <= (validated_step if "valid_nats_per_token" in line else step)
    ]
    atomic.write_bytes(directory / METRICS, "".join(lines).encode())


def cut_samples(directory: Path, *, validated_step: int) -> None:
    """Drop from samples.txt those after `validated_step`."""
    path = directory / SAMPLES
    if is_plain(path):
        content = path.read_bytes()
        later = (m.start() for m in SAMPLE.finditer(content) if int(m[1]) > validated_step)
        kept = content[: next(later, len(content))]
        atomic.write_bytes(path, kept[: kept.rfind(b"\n") + 1])  # less a header cut short
