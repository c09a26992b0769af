"""HTML reports: self-contained, well-formed, legible, and with all external text escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from gru_lm.reporting.report import MOST_POINTS, compare_page, eval_page

HOSTILE = '<script>alert("1")</script>\'"&\x00\x1b\n\ud800\u202e<a href="http://x.org">'
VOID = {"meta", "img", "br", "path"}
RESULT: dict[str, Any] = {
    **{"tokens": 217646, "bytes": 1000000, "perplexity": None, "bits_per_byte": 1.5},
    **{"ci95": [1.4, 1.6], "mode": "stream", "checkpoint": "r/best", "device": "cpu", "new": {}},
}
ROWS = [
    {"cell": cell, "seed": seed, "bits_per_byte": bits + seed / 100, "parameters": 12345}
    for cell, bits in (("gru", 1.5), ("lstm", 1.75))
    for seed in (1, 2, 3)
]
DIFFERENCE = {"a": "gru", "b": "lstm", "bits_per_byte": -0.25123, "interval": [-0.2731, -0.2291]}
DIFFERENCE |= {"level": 0.95, "verdict": "gru is better"}
COMPARED: dict[str, Any] = {
    **{"cells": ["gru", "lstm"], "match": "parameters", "seeds": 3, "minutes": 1.0, "runs": ROWS},
    **{"differences": [DIFFERENCE], "on": "the last tenth"},
}


class Page(HTMLParser):
    """The elements and text of a page; fails on unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        page.encode()  # is valid UTF-8
        self.feed(page)
        self.close()
        assert not self.open
        for tag, attributes in self.elements:
            assert tag not in ("script", "link", "iframe", "object", "a", "form", "base"), tag
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href", "xlink:href", "action"):
                assert (attributes.get(name) or "data:image/png;").startswith("data:image/png;")
        assert not re.search(r"url\(|@import", page)
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [each for _, each in self.elements if name in (each.get("class") or "").split()]


def evaluated(result: dict[str, Any], **given: Any) -> str:
    plain: dict[str, Any] = {"title": "t", "blocks": [], "tokens": [], "shown_of": (0, 0)}
    return eval_page(result, **(plain | given))


def test_the_figures_and_only_what_there_is() -> None:
    text = Page(evaluated(RESULT)).text
    for each in ("1.50 (95 % interval 1.40 to 1.60)", "217,646", "mode stream; r/best; cpu"):
        assert each in text
    assert "perplexity–" in text
    for heading in ("Files", "Baselines", "Adaptive", "Minimal", "Loss along", "by surprisal"):
        assert f"<h2>{heading}" not in evaluated(RESULT)
    row = {"name": "cache", "bits_per_byte": 1.35, "perplexity": 9.0, "settings": {"theta": 0.1}}
    phenomenon = {"name": "agreement", "pairs": 40, "accuracy": 0.5, "ci95": [0.25, 0.75]}
    more = {
        **{"files": [{"file": "f.txt", "bits_per_byte": None}], "adapted": [row]},
        **{"baselines": [{"name": "lzma", "bits_per_byte": 3.0}], "ngram": {**row, "name": "3"}},
        "pairs": {"pairs": 1000, "accuracy": 0.75, "ci95": None, "phenomena": [phenomenon]},
    }
    text = Page(evaluated(RESULT | more)).text
    for each in ("f.txt–", "cache (theta 0.1)1.359.00-10.0%", "lzma3.00", "+100.0%"):
        assert each in text
    assert "agreement50.0%25.0% to 75.0%40" in text
    assert "all pairs75.0%– to –1,000" in text
    assert (
        "Note: it is & was flattered."
        in Page(evaluated(RESULT | {"caveats": ["it is & was flattered"]})).text
    )


@pytest.mark.parametrize("blocks", [1, 10, MOST_POINTS, 5000])
def test_loss_along_the_text_is_averaged_to_a_few_points(blocks: int) -> None:
    given = [(500 * (i + 1), float(i % 2)) for i in range(blocks)]
    given[-1] = (given[-1][0], float("nan"))
    page = Page(evaluated({}, blocks=[(500, 1.0), *((a + 500, b) for a, b in given)]))
    lines = [each["d"] or "" for tag, each in page.elements if tag == "path" and len(each) == 1]
    assert len(lines) == 1
    assert 1 <= lines[0].count("H") <= MOST_POINTS
    assert f"{500 * (blocks + 1):,} tokens" in page.text
    assert max(float(x) for x in re.findall(r"H([\d.]+)", lines[0])) <= 590


def test_every_token_has_its_colour_and_its_bits() -> None:
    tokens = [("a", -0.0, False), ("\n", 0.5, False), ("<0xE2>", 7.306, True), ("", 99.0, False)]
    tokens += [("\t&é", float("inf"), False)]
    page = Page(evaluated({}, tokens=tokens, shown_of=(20000, 217646)))
    found = [(each["class"], each["title"]) for _, each in page.elements if "title" in each]
    assert found == [
        *(("s0", "0.00 bits"), ("s1 n", "0.50 bits"), ("s6 u", "7.31 bits, unknown")),
        *(("s9 e", "99.00 bits"), ("s9", "inf bits")),
    ]
    assert "a\n<0xE2>\t&é" in page.text
    assert "he first 20,000 of 217,646 tokens" in page.text
    assert "All 5 tokens" in evaluated({}, tokens=tokens, shown_of=(5, 5))


def luminance(colour: str) -> float:
    """Relative luminance as defined by WCAG 2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_colours_can_be_read_and_told_apart_by_lightness_alone() -> None:
    pairs = re.findall(r"\.s(\d)\{background:(#\w+);color:(#\w+)\}", evaluated({}))
    assert [number for number, *_ in pairs] == 2 * list("0123456789")
    backs = [luminance(back) for _, back, _ in pairs]
    for back, (_, _, text) in zip(backs, pairs, strict=True):
        high, low = sorted((back, luminance(text)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (back, text)
    for ramp in (backs[:10][::-1], backs[10:]):  # light theme to dark, dark theme to light
        assert all((b + 0.05) / (a + 0.05) > 1.1 for a, b in pairwise(ramp))


def test_a_comparison_of_cells() -> None:
    page = Page(compare_page(COMPARED, b"\x89PNG"))
    assert page.text.index("gru is better") < page.text.index("Cells")
    (picture,) = [each for tag, each in page.elements if tag == "img"]
    assert picture["src"] == "data:image/png;base64,iVBORw=="
    assert "gru, lstm" in (picture["alt"] or "")
    assert [tag for tag, _ in page.elements].count("circle") == 6
    assert (len(page.of_class("thin")), len(page.of_class("bar"))) == (3, 2)
    for each in ("gru1.52000.01003", "lstm1.77000.01003", "gru11.510012,345", "the last tenth"):
        assert each in page.text
    assert "95 % interval" in page.text
    assert "gru less lstm-0.251-0.274 to -0.229" in page.text, "rounded outward"
    assert "equal parameters" in page.text
    several = [
        DIFFERENCE | {"verdict": "first"},
        DIFFERENCE | {"interval": None, "verdict": "second"},
    ]
    text = Page(compare_page(COMPARED | {"differences": several}, None)).text
    assert text.index("first") < text.index("second") < text.index("Cells")
    assert "gru less lstm-0.2512–" in text


def test_a_comparison_of_what_failed_and_of_finished_models() -> None:
    failed = [row | {"bits_per_byte": None} for row in ROWS]
    assert "circle" not in {
        t for t, _ in Page(compare_page(COMPARED | {"runs": failed}, None)).elements
    }
    Page(compare_page(COMPARED | {"runs": []}, None))
    two = {"a": {"name": "runs/a"}, "b": {"name": "runs/b", "bits_per_byte": 1.25}}
    page = Page(compare_page({**two, "differences": [DIFFERENCE], "on": "test.txt"}, None))
    assert "runs/b1.2500" in page.text
    assert "runs/a and runs/b were measured on test.txt" in page.text


def test_what_comes_from_outside_is_text() -> None:
    row = {"name": HOSTILE, "bits_per_byte": 1.0, "settings": {HOSTILE: 1}}
    pairs = {"pairs": 1, "accuracy": 1.0, "ci95": [0.5, 1.0], "phenomena": []}
    pairs["phenomena"] = [{**pairs, "name": HOSTILE}]
    result = {
        **{"mode": HOSTILE, "checkpoint": HOSTILE, "device": HOSTILE, "baselines": [row]},
        **{
            "files": [{"file": HOSTILE, "tokens": 1}],
            "adapted": [row],
            "ngram": row,
            "pairs": pairs,
        },
    }
    tokens = [(each, 1.0, True) for each in (HOSTILE, *HOSTILE)]
    page = Page(evaluated(result, title=HOSTILE, tokens=tokens, shown_of=(2, 2)))
    seen = '<script>alert("1")</script>\'"&\\x00\\x1b\\n\\ud800\\u202e<a href="http://x.org">'
    assert page.text.count(seen) == 2 + 3 + 2 * 3 + 2
    assert page.text.count(seen.replace("\\n", "\n")) == 2, "newlines of the text are kept"
    difference = DIFFERENCE | {"a": HOSTILE, "b": HOSTILE, "verdict": HOSTILE}
    result = COMPARED | {"cells": [HOSTILE, "b"], "match": HOSTILE, "on": HOSTILE}
    result |= {"runs": [row | {"cell": HOSTILE, "seed": HOSTILE} for row in ROWS]}
    result |= {"differences": [difference, difference]}
    assert Page(compare_page(result, b"png")).text.count(seen) > 20
