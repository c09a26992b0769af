"""The result of an evaluation as tables on the terminal. Knows the result's fields, and no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gru_lm.reporting import console

FIGURES = (
    ("bits_per_byte", "bits per byte", ".4f"),
    ("bits_per_character", "bits per character", ".4f"),
    ("nats_per_token", "nats per token", ".4f"),
    ("perplexity", "perplexity", ",.2f"),
    ("word_perplexity", "word perplexity", ",.2f"),
    ("perplexity_excluding_unknown", "perplexity without unknown", ",.2f"),
    ("unknown_rate", "unknown", ".2%"),
    ("tokens", "tokens", ","),
    ("words", "words", ","),
    ("lines", "lines", ","),
    ("characters", "characters", ","),
    ("bytes", "bytes", ","),
)
SPELLED = ("bits_per_byte", "bits_per_character")
BESIDE = ("bits_per_byte", "bits_per_character", "perplexity", "word_perplexity", "unknown_rate")


def show(result: dict[str, Any]) -> None:
    """Print what `evaluate` returned: results on stdout, what they rest on on stderr."""
    if convention := result.get("as"):
        console.result(convention["text"])
    elif "tokens" in result:
        _figures(result)
    for rows in (result.get("baselines"), _beside(result)):
        if rows:
            headers = ["row", "bits per byte", "perplexity", "change"]
            console.table(headers, [_row(row, result) for row in rows])
    if curve := result.get("context_curve"):
        _context(curve)
    if pairs := result.get("pairs"):
        _pairs(pairs)
    if "tokens" in result:
        speed = f"{result['tokens_per_second']:,.0f} tokens/s " if result["seconds"] else ""
        console.note(
            f"every token scored, the first too; mode {result['mode']}; {result['checkpoint']}; "
            f"{result['seconds']:.1f} s {speed}on {result['device']}"
        )


def with_settings(row: Mapping[str, Any]) -> str:
    """The name of a row beside the model's own, with the settings that made it."""
    settings = row.get("settings") or ({"weight": row["weight"]} if "weight" in row else {})
    chosen = ", ".join(f"{k} {v:g}" for k, v in settings.items() if isinstance(v, int | float))
    return f"{row['name']} ({chosen})" if chosen else str(row["name"])


def _figures(result: dict[str, Any]) -> None:
    spelled = " (unknown words spelled)" if result["unknown_tokens"] else ""
    figures = [
        (name, label + spelled if name in SPELLED else label, style)
        for name, label, style in FIGURES
    ]
    if "files" in result:
        shown = [row for row in figures if row[0] in (*BESIDE, "tokens", "bytes")]
        rows = [
            [each["file"], *(_shown(each[name], style) for name, _, style in shown)]
            for each in (*result["files"], {**result, "file": "total"})
        ]
        console.table(["file", *(label for _, label, _ in shown)], rows)
    else:
        rows = [[label, _shown(result[name], style)] for name, label, style in figures]
        if interval := result["ci95"]:
            rows[0][1] += f"  ({interval[0]:.4f} to {interval[1]:.4f})"
        console.table(["figure", "value"], rows)
    if "files" in result and (interval := result["ci95"]):
        console.note(
            f"bits per byte of all: {interval[0]:.4f} to {interval[1]:.4f} (95 % interval)"
        )


def _beside(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [result[name] for name in ("ngram", "interpolated") if name in result]
    return [*rows, *result.get("adapted", [])]


def _row(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    bits, plain = row["bits_per_byte"], result["bits_per_byte"]
    change = f"{bits / plain - 1:+.1%}" if bits and plain else "-"
    return [with_settings(row), _shown(bits, ".4f"), _shown(row.get("perplexity"), ",.2f"), change]


def _context(curve: dict[str, Any]) -> None:
    rows = [
        [
            f"{point['context']:,}",
            _shown(point["bits_per_token"], ".4f"),
            " to ".join(_shown(end, ".4f") for end in point["ci95"] or (None, None)),
        ]
        for point in curve["contexts"]
    ]
    console.table(["tokens of context", "bits a token", "95 % interval"], rows)
    if curve["helps"] is not None:
        console.note(
            f"{curve['helps']:,} tokens of context are within {curve['helps_within']:.0%} of the most"
        )


def _pairs(pairs: dict[str, Any]) -> None:
    whole = {**pairs, "name": "all pairs"}
    rows = [
        [
            each["name"],
            f"{each['accuracy']:.1%}",
            f"{each['ci95'][0]:.1%} to {each['ci95'][1]:.1%}",
            f"{each['pairs']:,}",
        ]
        for each in (*(pairs["phenomena"] or pairs["paradigms"]), whole)
    ]
    console.table(["minimal pairs", "right", "95 % interval", "pairs"], rows)
    if pairs["ties"]:
        console.note(f"{pairs['ties']:,} pairs are alike to the model, and count as wrong")


def _shown(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
