"""Read and truncate the reports of a run: metrics.jsonl and samples.txt.

These files may have been edited by users or truncated by crashes. Invariant: only complete lines with
values of valid types are returned, whatever the contents of the file.
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
)  # null if not finite
MOST = 1e300  # "not <" rejects NaN and infinity too


def metrics(directory: Path, warn: Callable[[str], None] = unheard) -> list[dict[str, Any]]:
    """The valid lines of a run's metrics.jsonl; warns with the number of invalid ones."""
    path = directory / METRICS
    # A crash may have truncated the last line.
    *lines, last = path.read_bytes().split(b"\n") if is_plain(path) else [b""]
    parsed = [_report(line) for line in lines]
    if dropped := parsed.count(None):
        warn(f"{path}: {dropped:,} invalid lines dropped")
    return [line for line in (*parsed, _report(last)) if line is not None]


def _report(line: bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; None if it is invalid."""
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
    """Drop lines after `step` from metrics.jsonl, and validations after `validated_step`."""
    lines = [
        json.dumps(line) + "\n"
        for line in metrics(directory, warn)
        if line["step"] <= (validated_step if "valid_nats_per_token" in line else step)
    ]
    atomic.write_bytes(directory / METRICS, "".join(lines).encode())


def cut_samples(directory: Path, *, validated_step: int) -> None:
    """Drop samples after `validated_step` from samples.txt."""
    path = directory / SAMPLES
    if is_plain(path):
        content = path.read_bytes()
        later = (m.start() for m in SAMPLE.finditer(content) if int(m[1]) > validated_step)
        kept = content[: next(later, len(content))]
        atomic.write_bytes(path, kept[: kept.rfind(b"\n") + 1])  # without a truncated header
