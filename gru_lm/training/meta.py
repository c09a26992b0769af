"""Validation of a checkpoint's JSON metadata, before any of it is used.

A checkpoint may come from an untrusted source. The result of `parsed` has every key this program reads,
with the right type and in range, finite numbers only, and no text with terminal control characters.
Consistency with the tensors is checked by state.py. Needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gru_lm.config import LARGEST
from gru_lm.model.options import RegularizationOptions, Shape, field_types

FORMAT = 1
MAX_DEPTH = 8  # of nested lists and objects

MODEL = field_types(Shape) | {"vocab_size": int, "rows": int, "cutoffs": list}
REGULARIZATION = field_types(RegularizationOptions)
DATA = {"train": str, "valid": str, "test": str}
SEEN = {"document_ends": bool, "carriage_returns": bool}  # what the training text held
ENVIRONMENT = {"torch": str, "threads": int, "device": str, "backend": str}
COUNTERS = ("step", "tokens", "leg_step", "validated_tenths", "since_best")  # 0 or more
STEPS = ("validated_step", "best_step", "average_start")  # -1: none
_OBJECTS: dict[str, Mapping[str, type]] = {
    "model": MODEL,
    "regularization": REGULARIZATION,
    "data": DATA,
    "environment": ENVIRONMENT,
    "config": {},
    "scaler": {},
}


class FormatError(ValueError):
    """Unsupported format version, given as `version`."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


def parsed(text: str) -> dict[str, Any]:
    """Parse and validate JSON metadata. Raises FormatError for another format, else ValueError."""
    meta: dict[str, Any] = json.loads(text, parse_float=_finite, parse_constant=_finite)
    _check_plain(meta, MAX_DEPTH)
    version = meta.get("format") if isinstance(meta, dict) else None
    if type(version) is not int:
        raise ValueError("no format version")
    if version != FORMAT:
        raise FormatError(version)
    _check_types(meta, dict.fromkeys((*COUNTERS, *STEPS), int) | dict.fromkeys(_OBJECTS, dict))
    for name, types in _OBJECTS.items():
        _check_types(meta[name], types)
    if "seen" in meta:  # older checkpoints do not say
        _check_types(meta, {"seen": dict})
        _check_types(meta["seen"], SEEN)
    if any(type(cutoff) is not int for cutoff in meta["model"]["cutoffs"]):
        raise ValueError("a cutoff is not an int")
    _check_types(meta, {"tokenizer": str, "best_unknown_nats": float, "validations": list})
    if any(type(nats) is not float for nats in meta["validations"]):
        raise ValueError("a validation loss is not a float")
    for name in ("best_nats", "seconds", "began"):
        if meta.get(name, "") is not None:
            _check_types(meta, {name: float})
    _check_spacing(meta.get("spacing"))
    if meta.get("leg_nats") is not None:  # absent from older checkpoints
        _check_types(meta, {"leg_nats": float})
    if any(meta[name] < 0 for name in COUNTERS) or any(meta[name] < -1 for name in STEPS):
        raise ValueError("a negative count")
    if meta["leg_step"] > meta["step"]:
        raise ValueError("the budget starts after the current step")
    if meta["best_step"] >= 0 and meta["best_nats"] is None:
        raise ValueError("a best step without a loss")
    return meta


def _check_spacing(spacing: Any) -> None:
    """Counts of white space by place (None: the tokenizer is lossless, or the checkpoint older)."""
    if spacing is None:
        return
    if type(spacing) is not dict or any(type(counts) is not dict for counts in spacing.values()):
        raise ValueError("spacing is not counts by place")
    for counts in spacing.values():
        _check_types(counts, dict.fromkeys(counts, int))
        if any(count < 1 for count in counts.values()):
            raise ValueError("a count below 1")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _check_types(values: Mapping[str, Any], types: Mapping[str, type]) -> None:
    for name, expected in types.items():
        # not isinstance, which accepts a bool as an int
        if name not in values or type(values[name]) is not expected:
            raise ValueError(f"{name} is not of type {expected.__name__}")


def _check_plain(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_plain(name, depth)
            _check_plain(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, depth - 1)
    elif isinstance(value, str):
        if not value.isprintable():
            raise ValueError("text with unprintable characters")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError("a number is too large")
