"""Plots as PNG bytes: loss curves of a run and of a comparison, and loss against context length.

Knows the fields of metrics.jsonl and of a context curve, but no run directories.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gru_lm import caches

# Read when matplotlib is imported; without a writable directory it prints warnings.
os.environ.setdefault("MPLCONFIGDIR", str(caches.folder(caches.MATPLOTLIB)))

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1f5fbf", "#c2452d", "#2f8f4e", "#8a4fb0", "#b8860b", "#3b3b3b")


def loss_png(metrics: Sequence[dict[str, Any]], title: str) -> bytes:
    """Plot training and validation loss against training tokens, as PNG bytes.

    `metrics` holds the lines of metrics.jsonl; losses are in nats per token. High losses at the start
    of training are clipped.
    """
    train = [(m["tokens"], m["loss"]) for m in metrics if "loss" in m]
    valid = [
        (m["tokens"], m["valid_nats_per_token"]) for m in metrics if "valid_nats_per_token" in m
    ]
    figure = Figure(figsize=(7, 4.2), dpi=120)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.97, top=0.92, bottom=0.13)
    if train:
        axes.plot(*zip(*train, strict=True), color="#9db4d6", linewidth=1, label="training")
    if valid:
        axes.plot(
            *zip(*valid, strict=True), color="#c2452d", marker="o", markersize=4, label="validation"
        )
        best = min(valid, key=lambda point: point[1])
        axes.annotate(
            f"{best[1]:.3f}",
            best,
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            color="#c2452d",
        )
    losses = sorted(loss for _, loss in train + valid)
    if losses:
        low, high = losses[0], losses[int(0.98 * (len(losses) - 1))]
        margin = max(0.05, 0.08 * (high - low))
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_formatter(_si)
    axes.grid(alpha=0.25)
    if train or valid:
        axes.legend(frameon=False)
    _despine(axes)
    return _png(figure)


def context_png(curve: dict[str, Any], title: str) -> bytes:
    """Plot loss against context length, exact and by position after a cold start, as PNG bytes.

    `curve` is ContextCurve.as_dict(), in bits per token, with None for values that are not finite.
    Shaded areas are 95 % intervals. A bin of positions is plotted at its geometric mean.
    """
    figure = Figure(figsize=(7, 4.2), dpi=120)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.97, top=0.92, bottom=0.13)
    contexts = [point["context"] for point in curve["contexts"]]
    middles = [math.sqrt(place["first"] * place["last"]) for place in curve["positions"]]
    for x, points, colour, marker, label in (
        (middles, curve["positions"], "#6b8cc0", "s", "by position after a cold start"),
        (contexts, curve["contexts"], "#c2452d", "o", "by exact context length"),
    ):
        values = [_number(point["bits_per_token"]) for point in points]
        ends = [[_number(end) for end in point["ci95"] or (None, None)] for point in points]
        low, high = zip(*ends, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, values, color=colour, linewidth=1.2, marker=marker, markersize=4, label=label)
    # Logarithmic from 1; 0 is one tick further to the left.
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("loss (bits per token)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _despine(axes)
    return _png(figure)


def _si(value: float, _: float) -> str:
    """Format a tick label with an SI prefix: 1500000 -> 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _number(value: float | None) -> float:
    """Replace None by NaN, which matplotlib leaves out."""
    return math.nan if value is None else value


def curves_png(curves: Mapping[str, Sequence[Sequence[dict[str, Any]]]]) -> bytes:
    """Plot the validation loss of every run of several cells against tokens and time, as PNG bytes.

    `curves` maps each cell to its runs, each given by the lines of its metrics.jsonl. Thin lines are
    runs, thick lines the mean of a cell's runs where all have data; losses are in bits per byte.
    """
    figure = Figure(figsize=(10, 4.2), dpi=120)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.95, bottom=0.13, wspace=0.06)
    losses = []
    for axes, key, label in zip(
        panels, ("tokens", "seconds"), ("training tokens", "seconds"), strict=True
    ):
        for number, (cell, runs) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            series = [points for metrics in runs if len(points := _validations(metrics, key))]
            for points in series:
                # A run with a single validation has no line: its marker shows it.
                marker = "o" if len(points) < 3 else None
                axes.plot(*points.T, color=colour, linewidth=0.7, alpha=0.6, marker=marker)
                losses += points[:, 1].tolist()
            low = max((points[0, 0] for points in series), default=0.0)
            high = min((points[-1, 0] for points in series), default=0.0)
            at = np.linspace(low, max(low, high), 200)
            if series:
                mean = np.mean([np.interp(at, *points.T) for points in series], 0)
                axes.plot(at, mean, color=colour, linewidth=2.2, label=cell)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(_si)
        axes.grid(alpha=0.25)
        _despine(axes)
    if losses:
        # Clip high losses at the start of training.
        low, high = min(losses), float(np.quantile(losses, 0.95))
        margin = max(0.02, 0.08 * (high - low))
        panels[0].set_ylim(low - margin, high + margin)
        panels[1].legend(frameon=False)
    panels[0].set_ylabel("validation loss (bits per byte)")
    return _png(figure)


def _validations(metrics: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """The value of `key` and the bits per byte of each validation, [n, 2]."""
    points = [(m[key], m["valid_bits_per_byte"]) for m in metrics if m.get("valid_bits_per_byte")]
    return np.array(points, float).reshape(-1, 2)


def _despine(axes: Axes) -> None:
    """Remove the top and right borders."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
