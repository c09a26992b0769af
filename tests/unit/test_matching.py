"""Cells made comparable: sizes that agree in every pair, by the models' own count."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.commands.compare.matching import (
    AGREEMENT,
    fixed,
    matched_widths,
    parameters,
    plan_cells,
    quadratic,
)
from gru_lm.commands.train.prepare import Prepared, prepare
from gru_lm.config import settings as configured
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.planning.model import MOST_EPOCHS, Plan

SHAPES = [
    ModelConfig(cell="gru", vocab_size=323, rows=70, layers=1, width=1, embed=16),
    ModelConfig(cell="gru", vocab_size=64, layers=2, width=1, embed=40, tied=True, residual=True),
    ModelConfig(
        cell="gru", vocab_size=900, layers=2, width=1, embed=32, tied=True, cutoffs=(90, 300)
    ),
]
PLAN = Plan(
    cell="gru",
    layers=2,
    width=64,
    embed=48,
    tied=False,
    softmax="full",
    dropout=0.0,
    batch=2,
    bptt=8,
    optimizer="adamw",
    lr=1e-3,
    beta2=0.99,
    weight_decay=0.0,
    precision="float32",
)


def agree(sizes: list[float]) -> bool:
    return all(abs(a - b) <= AGREEMENT * min(a, b) for a, b in itertools.combinations(sizes, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=["untied", "tied", "adaptive"])
def test_parameters_agree_by_the_real_count(shape: ModelConfig) -> None:
    def size(cell: str, width: int) -> int:
        return parameters(dataclasses.replace(shape, cell=cell, width=width))

    cells = list(CELLS)
    sizes = [
        quadratic(lambda width, cell=cell: size(cell, width), apart=shape.embed) for cell in cells
    ]
    for planned in (8, shape.embed, 100):
        widths = matched_widths(sizes, planned)
        models = [
            LanguageModel(dataclasses.replace(shape, cell=cell, width=width))
            for cell, width in zip(cells, widths, strict=True)
        ]
        assert agree([model.parameter_count() for model in models]), widths


@pytest.mark.parametrize("shape", SHAPES, ids=["untied", "tied", "adaptive"])
def test_four_counts_say_them_all(shape: ModelConfig) -> None:
    def size(width: int) -> int:
        return parameters(dataclasses.replace(shape, cell="lstm", width=width))

    found = quadratic(size, apart=shape.embed)
    for width in (1, 2, shape.embed - 1, shape.embed, shape.embed + 1, 700):
        assert found(width) == size(width)


def test_the_published_ratio() -> None:
    """An LSTM of 256 on 256 inputs has the weights of a GRU of 296, 15.5 % wider."""

    def gates(count: int) -> object:
        return lambda width: count * width * (width + width + 1)

    lstm, gru = matched_widths([gates(4), gates(3)], 256)  # type: ignore[list-item]
    assert (lstm, gru) == (256, 296)


def test_arithmetic_agrees_and_the_first_width_is_as_planned_where_that_has_a_match() -> None:
    def size(cell: str) -> object:
        return lambda width: dataclasses.replace(PLAN, cell=cell, width=width).weights(70)

    widths = matched_widths([size("gru"), size("lstm"), size("rnn")], 256)  # type: ignore[list-item]
    assert abs(widths[0] - 256) <= 2
    assert widths[1] < widths[0] < widths[2]
    sizes = [
        dataclasses.replace(PLAN, cell=cell, width=width).weights(70)
        for cell, width in zip(("gru", "lstm", "rnn"), widths, strict=True)
    ]
    assert agree(sizes)


def test_plans_of_every_kind_and_planned_again(text: Path) -> None:
    chosen = configured({"text": [str(text)], "layers": 1, "batch": 2, "bptt": 8, "steps": 3})

    def plans(match: str) -> dict[str, Prepared]:
        return plan_cells(chosen, ["gru", "rnn"], match=match, stop=lambda: None)

    gru, rnn = plans("width").values()
    assert (gru.plan.width, gru.plan.embed) == (rnn.plan.width, rnn.plan.embed)
    assert (gru.plan.cell, rnn.plan.cell) == ("gru", "rnn")
    counts_V, again_V = gru.counts_V(), dataclasses.replace(gru, forecast=None).counts_V()
    assert counts_V.data_ptr() == again_V.data_ptr(), "the text is counted once"
    pieces = int((counts_V > 0).sum())
    gru, rnn = plans("arithmetic").values()
    assert agree([gru.plan.weights(pieces), rnn.plan.weights(pieces)])
    assert gru.plan.lr > rnn.plan.lr, "the wider one learns slower"
    gru, rnn = plans("time").values()
    alone = dataclasses.replace(chosen, cell="rnn")
    again = fixed(rnn, alone)
    planned = prepare(again, stdin=text, source=None, started=0.0, stop=lambda: None)
    assert planned.plan == rnn.plan
    assert planned.data.tokenizer.fingerprint == rnn.data.tokenizer.fingerprint
    # Where time alone limits it, the planner's own limit must not hang on how fast it is just now.
    timed = dataclasses.replace(rnn.settings, steps=None, minutes=1.0)
    assert fixed(dataclasses.replace(rnn, settings=timed), alone).epochs == MOST_EPOCHS
    assert again.epochs is None


@settings(max_examples=15)
@given(
    gates=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    inputs=st.integers(0, 500),
    rest=st.integers(0, 10**6),
    planned=st.integers(1, 300),
)
def test_there_always_are_widths_and_the_nearest_is_taken(
    gates: list[int], inputs: int, rest: int, planned: int
) -> None:
    def sized(count: int) -> object:
        return lambda width: count * width * (width + inputs + 1) + rest

    widths = matched_widths([sized(count) for count in gates], planned)  # type: ignore[misc]
    assert agree([sized(count)(width) for count, width in zip(gates, widths, strict=True)])  # type: ignore[operator]
    if len(set(gates)) == 1:
        assert widths == [planned] * len(gates)
