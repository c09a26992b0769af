"""Pictures: the loss over training as a PNG. Knows metrics.jsonl's fields, and no run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def loss_png(metrics: Sequence[dict[str, Any]], title: str) -> bytes:
    """The curve of training loss, and the points of validation, over tokens, as PNG bytes.

    Losses are nats a token. A flat start far above the rest is cut off, not squeezed in.
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
    axes.set_ylabel("loss, nats a token")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_formatter(_si)
    axes.grid(alpha=0.25)
    if train or valid:
        axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _si(value: float, _: float) -> str:
    """A token count for an axis: 1500000 -> 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
