"""Results of an evaluation as tables on the terminal, with formatting shared with the HTML report.

Depends on the fields of results only, not on models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gru_lm.evaluation.statistics import RESOLUTION, decimals_of, rounded, spanned
from gru_lm.reporting import console

Result = Mapping[str, Any]

FIGURES = (
    ("bits_per_byte", "bits per byte", ".4f"),
    ("bits_per_character", "bits per character", ".4f"),
    ("bits_per_record", "bits per record", ".3f"),
    ("nats_per_record", "nats per record", ".3f"),
    ("nats_per_token", "nats per token", ".4f"),
    ("perplexity", "perplexity", ",.2f"),
    ("word_perplexity", "word perplexity", ",.2f"),
    ("perplexity_excluding_unknown", "perplexity without unknown", ",.2f"),
    ("unknown_rate", "unknown", ".2%"),
    ("records", "records", ","),
    ("tokens", "tokens", ","),
    ("words", "words", ","),
    ("lines", "lines", ","),
    ("characters", "characters", ","),
    ("bytes", "bytes", ","),
)
SPELLED = ("bits_per_byte", "bits_per_character", "bits_per_record")
ENDED = ("bits_per_byte", "bits_per_character")  # of lists: the ends of records count as one each
BESIDE = (*ENDED, "perplexity", "word_perplexity", "unknown_rate")
PERPLEXITIES = ("perplexity", "word_perplexity", "perplexity_excluding_unknown")


def show(result: dict[str, Any]) -> None:
    """Print the result of `evaluate`: figures to stdout, conditions of the measurement to stderr."""
    if convention := result.get("as"):
        console.result(convention["text"])
    elif "tokens" in result:
        _figures(result)
    for rows in (result.get("baselines"), beside(result)):
        if rows:
            headers = ["row", "bits per byte", "perplexity", "change"]
            console.table(headers, [_row(row, result) for row in rows])
    if strange := result.get("strangest"):
        _strangest(strange)
    if curve := result.get("context_curve"):
        _context(curve)
    if pairs := result.get("pairs"):
        _pairs(pairs)
    if "tokens" in result:
        speed = f"{result['tokens_per_second']:,.0f} tokens/s " if result["seconds"] else ""
        console.note(
            f"all tokens scored, including the first; mode {result['mode']}; {result['checkpoint']}; "
            f"{result['seconds']:.1f} s {speed}on {result['device']}"
        )


def styles(result: Result) -> dict[str, str]:
    """Format of each of FIGURES: to two digits of the half width of the interval, if there is one."""
    formats = {name: style for name, _, style in FIGURES}
    interval = result.get("ci95")
    if not interval or not result["bits_per_byte"]:
        return formats
    share = (interval[1] - interval[0]) / 2 / result["bits_per_byte"]
    for name in (*SPELLED, "nats_per_record", "nats_per_token", *PERPLEXITIES):
        if value := result.get(name):
            # The exponential of x ± h is, to first order, e^x ± h e^x.
            scale = value * math.log(value) if name in PERPLEXITIES else value
            default = formats[name]
            decimals = min(int(default[-2]), max(0, decimals_of(max(share * scale, RESOLUTION))))
            formats[name] = f"{default[:-2]}{decimals}f"
    return formats


def interval_of(result: Result) -> str | None:
    """The 95 % interval of the bits per byte as text, if there is one."""
    interval = result.get("ci95")
    return f"95 % interval {spanned(*interval)}" if interval else None


def beside(result: Result) -> list[Result]:
    """Rows reported in addition to the model's own figures."""
    rows = [result[name] for name in ("ngram", "interpolated") if result.get(name)]
    return [*rows, *(result.get("adapted") or ())]


def change(row: Result, result: Result) -> float | None:
    """Relative difference of a row's bits per byte from the model's own."""
    bits, plain = row.get("bits_per_byte"), result.get("bits_per_byte")
    return bits / plain - 1 if bits and plain else None


def judged_pairs(pairs: Result) -> dict[str, list[Result]]:
    """Minimal pairs by phenomenon and by paradigm, where known, with all pairs in the last row."""
    total: Result = {**pairs, "name": "all pairs"}
    groups = {"phenomenon": pairs.get("phenomena"), "paradigm": pairs.get("paradigms")}
    tables = {name: [*rows, total] for name, rows in groups.items() if rows}
    return tables or {"minimal pairs": [total]}


def differences(pairs: Sequence[Result]) -> tuple[str, list[tuple[str, str | None, str | None]]]:
    """A label for the intervals, all of one level; and name, difference and interval of each pair."""
    rows = []
    for each in pairs:
        bits, span = each["bits_per_byte"], None
        value = None if bits is None else f"{bits:.4f}"
        if ends := each["interval"]:
            half = max((ends[1] - ends[0]) / 2, RESOLUTION)
            value, span = rounded(bits, half)[0], spanned(*ends)
        rows.append((f"{each['a']} less {each['b']}", value, span))
    return f"{100 * pairs[0]['level']:.4g} % interval", rows


def with_settings(row: Mapping[str, Any]) -> str:
    """The name of an additional row, with its settings."""
    settings = row.get("settings") or ({"weight": row["weight"]} if "weight" in row else {})
    chosen = ", ".join(f"{k} {v:g}" for k, v in settings.items() if isinstance(v, int | float))
    return f"{row['name']} ({chosen})" if chosen else str(row["name"])


def labels_of(result: Result) -> dict[str, str]:
    """The figures that a result has, in order, and what they are called."""
    labels = {name: label for name, label, _ in FIGURES if name in result}
    for names, note in (
        (ENDED, "ends included" if result.get("records") else ""),
        (SPELLED, "unknown words spelled" if result.get("unknown_tokens") else ""),
    ):
        for name in names:
            if note and name in labels:
                labels[name] += f" ({note})"
    return labels


def _figures(result: dict[str, Any]) -> None:
    labels = labels_of(result)
    style, interval = styles(result), interval_of(result)
    if "files" in result:
        shown = [name for name in labels if name in (*BESIDE, "records", "tokens", "bytes")]
        rows = [
            [each["file"], *(_shown(each.get(name), style[name]) for name in shown)]
            for each in (*result["files"], {**result, "file": "total"})
        ]
        console.table(["file", *(labels[name] for name in shown)], rows)
        if interval:
            console.note(f"bits per byte of all: {interval}")
    else:
        rows = [[label, _shown(result[name], style[name])] for name, label in labels.items()]
        if interval:
            rows[0][1] += f"  ({interval})"
        console.table(["figure", "value"], rows)


def _row(row: Result, result: Result) -> list[str]:
    style, differs = styles(result), change(row, result)
    figures = [_shown(row.get(name), style[name]) for name in ("bits_per_byte", "perplexity")]
    return [with_settings(row), *figures, _shown(differs, "+.1%")]


def _strangest(records: Sequence[Result]) -> None:
    headers = {"text": "strangest records", "nats_per_token": "nats per token"}
    names = [
        "text",
        "nats_per_token",
        *(n for n in records[0] if n not in ("text", "nats_per_token")),
    ]
    rows = [
        [_shown(v, ".3f") if n.startswith("nats") else str(v) for n in names for v in [each[n]]]
        for each in records
    ]
    console.table([headers.get(name, name) for name in names], rows)


def _context(curve: dict[str, Any]) -> None:
    rows = []
    for point in curve["contexts"]:
        bits, interval = _shown(point["bits_per_token"], ".4f"), "-"
        if point["ci95"]:
            low, high = point["ci95"]
            bits, _ = rounded(point["bits_per_token"], max((high - low) / 2, RESOLUTION))
            interval = spanned(low, high)
        rows.append([f"{point['context']:,}", bits, interval])
    console.table(["tokens of context", "bits per token", "95 % interval"], rows)
    if curve["helps"] is not None:
        console.note(
            f"the loss with {curve['helps']:,} tokens of context is within "
            f"{curve['helps_within']:.0%} of that with the longest context"
        )


def _pairs(pairs: dict[str, Any]) -> None:
    for name, group in judged_pairs(pairs).items():
        rows = [
            [
                each["name"],
                f"{each['accuracy']:.1%}",
                f"{each['ci95'][0]:.1%} to {each['ci95'][1]:.1%}",
                f"{each['pairs']:,}",
            ]
            for each in group
        ]
        console.table([name, "accuracy", "95 % interval", "pairs"], rows)
    if pairs["ties"]:
        console.note(f"{pairs['ties']:,} pairs got equal scores and count as wrong")


def _shown(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
