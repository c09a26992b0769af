"""Counts of streamed text equal those of the whole; metrics are ratios of sums; JSON stays valid."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.evaluation.metrics import Counts, TextCounter

CONTRACT = [
    "tokens",
    "bytes",
    "characters",
    "words",
    "lines",
    "nats",
    "spelling_nats",
    "nats_per_token",
    "perplexity",
    "bits_per_byte",
    "bits_per_character",
    "word_perplexity",
    "unknown_tokens",
    "unknown_rate",
    "perplexity_excluding_unknown",
]
TEXT = st.text(st.sampled_from(" \n\t\r\x1c\x85\u2028\u3000aé猫😀.") | st.characters(codec="utf-8"))


def counted(pieces: list[str]) -> Counts:
    counter = TextCounter()
    assert list(counter.watch(pieces)) == pieces
    return counter.counts()


@given(TEXT, st.lists(st.integers(0, 60), max_size=5))
def test_pieces_count_as_the_whole_does(text: str, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    counts = counted([text[a:b] for a, b in pairwise(borders)])
    assert counts == Counts(
        bytes=len(text.encode()),
        characters=len(text),
        words=len(text.split()),
        lines=text.count("\n") + (text != "" and not text.endswith("\n")),
    )


def test_figures_are_the_contracts_and_mean_what_it_says() -> None:
    counts = Counts(
        tokens=10,
        bytes=30,
        characters=20,
        words=5,
        lines=2,
        nats=12.0,
        unknown_tokens=2,
        unknown_nats=1.0,
    )
    figures = counts.figures()
    assert list(figures) == CONTRACT
    assert figures["nats_per_token"] == 1.2
    assert figures["perplexity"] == math.exp(1.2)
    assert figures["bits_per_byte"] == pytest.approx(12 / math.log(2) / 30)
    assert figures["bits_per_character"] == pytest.approx(12 / math.log(2) / 20)
    assert figures["word_perplexity"] == math.exp(12 / 5)
    assert figures["unknown_rate"] == 0.2
    assert figures["perplexity_excluding_unknown"] == math.exp(11 / 8)


def test_the_total_is_a_ratio_of_sums() -> None:
    total = Counts(tokens=1, bytes=1, nats=10.0) + Counts(tokens=99, bytes=399, nats=0.0)
    assert total.figures()["nats_per_token"] == 0.1
    assert total.figures()["bits_per_byte"] == pytest.approx(10 / math.log(2) / 400)


@pytest.mark.parametrize(
    "counts",
    [
        Counts(),
        Counts(tokens=1, nats=800.0, words=1, bytes=1, characters=1),  # exp(800) overflows
        Counts(tokens=2, nats=math.inf, words=1, bytes=1, characters=1),
        Counts(tokens=2, nats=3.0, unknown_tokens=2, unknown_nats=3.0),
    ],
)
def test_what_has_no_finite_value_is_null(counts: Counts) -> None:
    figures = counts.figures()
    json.dumps(figures, allow_nan=False)
    assert figures["perplexity_excluding_unknown"] is None


def test_a_lone_surrogate_is_counted_like_its_replacement() -> None:
    assert counted(["a\udc80"]).bytes == 4
