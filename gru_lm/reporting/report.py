"""An evaluation or a comparison as one HTML page: plain data in, str out.

The page is self-contained: no scripts or external resources, both forbidden by its content security
policy. It supports light and dark mode and printing. Depends on the fields of results, not on models,
runs or the terminal. Invariant: all external text passes through `_name` or `_text`, which escape
markup, bidirectional control characters and surrogates.
"""

from __future__ import annotations

import base64
import html
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from gru_lm.layout import HTML_MARK
from gru_lm.reporting.drawings import LEFT, RIGHT, TOP, Scale, padded, svg
from gru_lm.reporting.figures import (
    BESIDE,
    FIGURES,
    Result,
    beside,
    change,
    differences,
    interval_of,
    judged_pairs,
    labels_of,
    styles,
    with_settings,
)

MOST_POINTS = 600  # per line
EDGES = (0.5, 1, 2, 3, 4, 6, 8, 11, 15)  # boundaries between colours, in bits
# Distinguishable by lightness alone, and each readable with black (#111) or white text.
LIGHT = "#ffffff #fff1c9 #ffe3a0 #fed480 #fdc468 #fbac50 #f38c3c #df6a2c #ad3a1c #6e1a12"
DARK = "#15171a #1f2136 #302553 #472b69 #632f70 #82356c #a3405f #e08045 #f4a743 #fcd978"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_COLUMNS = {key: (label, style) for key, label, style in FIGURES} | {
    "tokens_per_second": ("tokens/s", ",.0f"),
    "seconds": ("seconds", ",.1f"),
    "change": ("change", "+.1%"),
    "accuracy": ("accuracy", ".1%"),
    "seed": ("seed", "d"),
}
_RUN = "seed, bits_per_byte, perplexity, parameters, width, tokens, tokens_per_second, seconds"
_MODEL = "bits_per_byte, perplexity, tokenizer, parameters, width"
# Control characters except tab and newline, bidirectional controls, surrogates.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _colours(backgrounds: str, white: range) -> str:
    return "".join(
        f".s{i}{{background:{back};color:{'#fff' if i in white else '#111'}}}"
        for i, back in enumerate(backgrounds.split())
    )


_CSS = f"""
:root{{color-scheme:light;--bg:#fff;--fg:#111;--dim:#595959;--rule:#ddd;--line:#1f5fbf}}
body{{max-width:48rem;margin:1rem auto;padding:0 1rem;background:var(--bg);color:var(--fg);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}}
h1{{line-height:1.25}} .dim{{color:var(--dim)}} .wide{{overflow-x:auto;overflow-wrap:normal}}
.verdict{{font-size:1.5rem;line-height:1.3;font-weight:600}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
td,th{{padding:.2rem .6rem;text-align:right;border-bottom:1px solid var(--rule)}}
td:first-child,th:first-child{{text-align:left;padding-left:0}}
svg{{width:100%;min-width:30rem;font-size:12px;fill:var(--fg)}} circle{{fill:var(--line)}}
path{{fill:none;stroke:var(--line);stroke-width:1.5}} .grid{{stroke:var(--rule)}}
.dash{{stroke:var(--fg);stroke-dasharray:6 4}} .bar{{stroke:var(--fg);stroke-width:3}}
.thin{{stroke:var(--dim);stroke-width:.7}} img{{max-width:100%;background:#fff}}
.text{{white-space:pre-wrap;line-height:1.7}} .u{{border-bottom:2px dashed}}
.text,.legend{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
.legend span{{padding:.1rem .4rem;white-space:nowrap}}
.n::before{{content:"↵"}} .e::before{{content:"∎"}}
{_colours(LIGHT, range(8, 10))}
@media screen and (prefers-color-scheme:dark){{
:root{{color-scheme:dark;--bg:#15171a;--fg:#e8e8e8;--dim:#aaa;--rule:#3a3d42;--line:#8ab4ff}}
{_colours(DARK, range(7))}}} @media print{{body{{max-width:none}}
.wide{{overflow:visible}} h2{{break-after:avoid}} svg,img,tr{{break-inside:avoid}}}}
"""


def eval_page(
    result: Result,
    *,
    title: str,
    blocks: Sequence[tuple[int, float]],
    tokens: Sequence[tuple[str, float, bool]],
    shown_of: tuple[int, int],
) -> str:
    """Report of `eval`: the result of `eval --json`, loss along the text, text coloured by surprisal.

    `blocks`: for each block, tokens up to its end and its bits per byte. `tokens`: for each token, its
    text (empty at the end of a document), surprisal in bits and whether it is unknown. `shown_of`:
    number of these tokens, and of all tokens. Unknown fields of `result` are ignored.
    """
    about = (
        [f"all tokens scored, including the first; mode {result['mode']}"]
        if "mode" in result
        else []
    )
    about += [str(result[key]) for key in ("checkpoint", "device") if key in result]
    plain, pairs, files = (result.get(key) for key in ("bits_per_byte", "pairs", "files"))
    parts = [f'<p class="dim">{_name("; ".join(about))}</p>'] if about else []
    parts += [f"<p>Note: {_name(each)}.</p>" for each in result.get("caveats") or ()]
    parts += [_table("", "figure", "value", _figures(result)), _along(blocks, plain)]
    style = styles(result)
    shown = [{k: _shown(v, style.get(k, "")) for k, v in each.items()} for each in files or ()]
    parts.append(_table("Files", "file", ", ".join((*BESIDE, "tokens", "bytes")), shown))
    rows_beside = ("Adaptive and interpolated models", beside(result))
    for heading, rows in (("Baselines", result.get("baselines")), rows_beside):
        compared = [_compared(row, result) for row in rows or ()]
        parts.append(_table(heading, "name", "bits_per_byte, perplexity, change", compared))
    strange = [
        {**each, "nats": _shown(each["nats"], ".3f")} for each in result.get("strangest") or ()
    ]
    parts.append(
        _table("Strangest records", "text", "nats_per_token, nats, tokens, file, line, id", strange)
    )
    parts += [_pairs(pairs) if pairs else "", _coloured(tokens, *shown_of) if tokens else ""]
    return _page(title, parts)


def compare_page(result: Result, curves_png: bytes | None) -> str:
    """Report of `compare`: the result of `compare --json`, for cells or for two finished models.

    For finished models, `result` has `a` and `b`, figures with a `name`, instead of `cells` and `runs`.
    `curves_png`: plot of the training losses, if there is one.
    """
    models = [result[side] for side in ("a", "b") if side in result]
    by_cell: dict[str, list[Result]] = {cell: [] for cell in result.get("cells") or ()}
    for run in result.get("runs") or ():
        by_cell.setdefault(run["cell"], []).append(run)
    names = list(by_cell) or [model["name"] for model in models]
    cells = [{"cell": cell, **_moments(_bits(runs))} for cell, runs in by_cell.items()]
    verdicts = dict.fromkeys(each["verdict"] for each in result["differences"])
    parts = [f'<p class="verdict">{_name(each)}</p>' for each in verdicts]
    parts += [f"<p>Note: {_name(each)}.</p>" for each in result.get("caveats") or ()]
    parts.append(_dots(by_cell))
    parts.append(_table("Cells", "cell", "mean bits per byte, standard deviation, runs", cells))
    parts += [_table("Models", "name", _MODEL, models), _differences(result["differences"])]
    parts.append(_table("All runs", "cell", _RUN, result.get("runs") or ()))
    if curves_png:
        data = base64.b64encode(curves_png).decode("ascii")
        alt = _name(f"Loss over training of every run: {', '.join(names)}")
        picture = f'<img src="data:image/png;base64,{data}" alt="{alt}">'
        parts.append(f"<h2>Training</h2><p>{picture}</p>")
    parts.append(f"<h2>Method</h2><p>{_name(_method(result, names))}</p>")
    return _page(f"Comparison: {', '.join(names)}", parts)


def _page(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(filter(None, parts))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
{HTML_MARK}
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_name(title)}</title><style>{_CSS}</style></head>
<body><h1>{_name(title)}</h1>
{body}
</body></html>
"""


def _name(text: str) -> str:
    """A name or a sentence as HTML, with unprintable characters as escapes."""
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _text(piece: str) -> str:
    """A piece of a text as HTML; unlike in `_name`, tabs, newlines, joiners and spaces are kept."""
    return html.escape(_HIDDEN.sub(lambda found: ascii(found[0])[1:-1], piece))


def _shown(value: str | float | None, style: str = "") -> str:
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, style or ("," if isinstance(value, int) else ".4f"))


def _table(heading: str, first: str, keys: str, rows: Sequence[Result]) -> str:
    """Rows as an HTML table without empty columns; "" if there are no rows."""
    columns = [(key, *_COLUMNS.get(key, (key, ""))) for key in keys.split(", ")]
    columns = [column for column in columns if any(column[0] in row for row in rows)]
    if not columns:
        return ""
    lines = [[first, *(label for _, label, _ in columns)]]
    lines += [[r[first], *(_shown(r.get(key), style) for key, _, style in columns)] for r in rows]
    cells = ["".join(f"<td>{_name(cell)}</td>" for cell in line) for line in lines]
    cells[0] = cells[0].replace("<td>", '<th scope="col">').replace("</td>", "</th>")
    body = "\n".join(f"<tr>{each}</tr>" for each in cells)
    above = f"<h2>{heading}</h2>" if heading else ""
    return f'{above}<div class="wide"><table>{body}</table></div>'


def _figures(result: Result) -> list[dict[str, str]]:
    rows, style = [], styles(result)
    for key, label in labels_of(result).items():
        value = _shown(result[key], style[key])
        if key == "bits_per_byte" and (interval := interval_of(result)):
            value += f" ({interval})"
        rows.append({"figure": label, "value": value})
    return rows


def _compared(row: Result, result: Result) -> Result:
    """The row with its settings in its name, and its change relative to the model's own figure."""
    style = styles(result)
    figures = {k: _shown(row.get(k), style[k]) for k in ("bits_per_byte", "perplexity")}
    return {**row, **figures, "name": with_settings(row), "change": change(row, result)}


def _pairs(pairs: Result) -> str:
    tables: list[str] = []
    for name, found in judged_pairs(pairs).items():
        rows = []
        for each in found:
            low, high = each.get("ci95") or (None, None)
            span = f"{_shown(low, '.1%')} to {_shown(high, '.1%')}"
            rows.append({**each, name: each["name"], "95 % interval": span})
        heading = "" if tables else "Minimal pairs"
        tables.append(_table(heading, name, "accuracy, 95 % interval, pairs", rows))
    return "\n".join(tables)


def _coloured(tokens: Iterable[tuple[str, float, bool]], shown: int, total: int) -> str:
    bins = [f"{low:g}–{high:g}" for low, high in pairwise((0, *EDGES))] + [f"{EDGES[-1]}+"]
    legend = " ".join(f'<span class="s{i}">{each}</span>' for i, each in enumerate(bins))
    spans = []
    for piece, bits, unknown in tokens:
        marks = " u" if unknown else ""
        marks += " e" if not piece else " n" if "\n" in piece and piece.isspace() else ""
        title = f"{max(bits, 0.0) + 0.0:.2f} bits{', unknown' if unknown else ''}"  # + 0.0: no "-0"
        colour = bisect_right(EDGES, bits)
        spans.append(f'<span class="s{colour}{marks}" title="{title}">{_text(piece)}</span>')
    part = f"The first {shown:,} of {total:,} tokens" if shown < total else f"All {total:,} tokens"
    return (
        f'<h2>Text by surprisal</h2><p class="legend">{part}; bits per token: {legend} '
        f'<span class="u">unknown</span></p><div class="text" dir="auto">{"".join(spans)}</div>'
    )


def _along(blocks: Sequence[tuple[int, float]], plain: float | None) -> str:
    """Step plot of the bits per byte along the text; neighbouring blocks are averaged if too many."""
    steps = [(a, b, bits) for (a, _), (b, bits) in pairwise([(0, 0.0), *blocks])]
    if not (spans := [span for span in steps if span[1] > span[0] and math.isfinite(span[2])]):
        return ""
    size = -(-len(spans) // MOST_POINTS)
    groups = [spans[first : first + size] for first in range(0, len(spans), size)]
    points = [(group[0][0], group[-1][1], _average(group)) for group in groups]
    mean = _average(spans) if plain is None else plain
    x = Scale(0, blocks[-1][0], LEFT, RIGHT)
    y = Scale(*padded([mean, *(bits for *_, bits in points)]), 220, TOP)
    drawn = "".join(
        f'<path class="grid" d="M{LEFT} {y(value)}H{RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{y(value)}" dy="4" text-anchor="end">{text}</text>'
        for value, text in y.ticks()
    )
    line = "L".join(f"{x(a)} {y(bits)}H{x(b)}" for a, b, bits in points)
    drawn += f'<path d="M{line}"/><path class="dash" d="M{LEFT} {y(mean)}H{RIGHT}"/>'
    label = f"Bits per byte along {x.high:,} tokens; dashed: mean"
    return f"<h2>Loss along the text</h2>{svg(drawn, x, 220, 'tokens', label)}"


def _average(spans: Sequence[tuple[int, int, float]]) -> float:
    return fmean((bits for *_, bits in spans), [end - start for start, end, _ in spans])


def _bits(runs: Iterable[Result]) -> list[float]:
    return [run["bits_per_byte"] for run in runs if _shown(run.get("bits_per_byte")) != "–"]


def _moments(bits: Sequence[float]) -> Result:
    mean, spread = fmean(bits) if bits else None, stdev(bits) if len(bits) > 1 else None
    return {"mean bits per byte": mean, "standard deviation": spread, "runs": len(bits)}


def _dots(by_cell: Mapping[str, Sequence[Result]]) -> str:
    """Dot plot: one row per cell, one dot per run, a bar at the mean, thin lines between equal seeds."""
    if not (all_bits := [bits for runs in by_cell.values() for bits in _bits(runs)]):
        return ""
    x = Scale(*padded(all_bits), 2 * LEFT, RIGHT)
    marks, seeds = "", dict[Any, list[str]]()
    for row, (cell, runs) in enumerate(by_cell.items()):
        y = TOP + 25 + 50 * row
        short = cell if len(cell) <= 18 else cell[:17] + "…"
        marks += f'<text x="0" y="{y + 4}">{_name(short)}</text>'
        for run in runs:
            for bits in _bits([run]):
                seeds.setdefault(run["seed"], []).append(f"{x(bits)} {y}")
                title = _name(f"{cell}, seed {run['seed']}: {bits:.4f}")
                marks += f'<circle cx="{x(bits)}" cy="{y}" r="4"><title>{title}</title></circle>'
        if values := _bits(runs):
            marks += f'<path class="bar" d="M{x(fmean(values))} {y - 14}V{y + 14}"/>'
    lines = "".join(f'<path class="thin" d="M{"L".join(each)}"/>' for each in seeds.values())
    label = "Dots are runs, bars are means, lines connect runs with the same seed; left is better"
    return svg(lines + marks, x, 50 * len(by_cell) + TOP, "bits per byte", label)


def _differences(pairs: Sequence[Result]) -> str:
    interval, rows = differences(pairs)
    keys = ("difference", "bits per byte", interval)
    table = [dict(zip(keys, row, strict=True)) for row in rows]
    return _table("Differences", "difference", f"bits per byte, {interval}", table)


def _method(result: Result, names: Sequence[str]) -> str:
    if not result.get("cells"):
        both = " and ".join(names)
        return f"{both} were measured on {result['on']}; fewer bits per byte are better."
    where = f"the same held-out data, {result['on']}"
    seeds = len({run["seed"] for run in result["runs"]})
    budget = f"for {result['minutes']:g} min"
    for name, before in (("steps", "for"), ("tokens", "on")):
        amounts = {run.get(name) for run in result["runs"]}
        if len(amounts) == 1 and (equal := amounts.pop()):
            budget = f"{before} {equal:,} {name}"
    return (
        f"{', '.join(names)} are compared at equal {result['match']}. Each was trained with {seeds} "
        f"seeds, {budget} per run; runs with the same seed used the same data in the same order. "
        f"All were measured on {where}; fewer bits per byte are better."
    )
