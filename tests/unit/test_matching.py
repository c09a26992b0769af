"""Matching cells for a comparison: sizes agree in every pair, counted in the models themselves."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.commands.compare.directory import FORMAT, OWN, Record
from gru_lm.commands.compare.matching import (
    AGREEMENT,
    VALIDATIONS,
    fixed,
    in_steps,
    matched_widths,
    parameters,
    plan_cells,
    quadratic,
)
from gru_lm.commands.compare.outcome import limits, trained_how
from gru_lm.commands.train.prepare import Prepared, prepare
from gru_lm.config import Settings
from gru_lm.config_layers import settings as configured
from gru_lm.errors import UsageError
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.planning.model import MOST_EPOCHS, Plan
from gru_lm.training.plan import TRAINING_SHARE

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
    """An LSTM of width 256 on 256 inputs has as many weights as a GRU of 296, 15.5 % wider."""

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


def tiny_plans(
    text: Path, cells: list[str], match: str = "parameters", **given: Any
) -> dict[str, Settings]:
    """Complete settings of some cells, planned for a text."""
    chosen = configured({"text": [str(text)], "layers": 1, "batch": 2, "bptt": 8}, given)
    planned = plan_cells(chosen, cells, match=match, stop=lambda: None)
    return {cell: fixed(each, chosen) for cell, each in planned.items()}


@pytest.mark.parametrize(
    ("match", "budget"),
    [("parameters", {"minutes": 0.5}), ("width", {"epochs": 2}), ("arithmetic", {"tokens": 999})],
)
def test_all_is_one_for_all_cells_but_width_and_rate(
    text: Path, match: str, budget: dict[str, float]
) -> None:
    """Also with a budget in minutes: all cells train for the steps of the slowest."""
    plans = tiny_plans(text, ["lstm", "gru"], match, tied=True, width=16, **budget)
    alike = [
        {name: value for name, value in plan.given().items() if name not in OWN}
        for plan in plans.values()
    ]
    assert alike[0] == alike[1]
    assert plans["gru"].width == 16
    if match == "parameters":
        assert "minutes" not in alike[0]
        assert alike[0]["steps"] > 1
        assert math.ceil(alike[0]["steps"] / alike[0]["eval_every"]) <= VALIDATIONS
    else:
        assert budget.items() <= alike[0].items()


def test_a_width_that_is_given_is_that_of_the_first_cell_of_the_table(text: Path) -> None:
    for cells, first in ((["rnn", "lstm", "gru"], "gru"), (["rnn", "lstm-thread"], "lstm-thread")):
        plans = tiny_plans(text, cells, steps=3, width=64)
        assert plans[first].width == 64
        assert plans == tiny_plans(text, cells[::-1], steps=3, width=64)
    free = tiny_plans(text, ["rnn", "gru"], steps=3)
    assert free == tiny_plans(text, ["gru", "rnn"], steps=3)


def recorded(
    text: Path, match: str = "parameters", asked_lr: float | None = None, **other: Any
) -> Record:
    """The record of a comparison; `other` settings apply only to the second cell."""
    budget = {"minutes": 1.0} if match == "time" else {"steps": 3}
    given = {"text": [str(text)], "layers": 1, "batch": 2, "bptt": 8, **budget}
    plan = configured(given, {"width": 8, "beta2": 0.99, "lr": 0.1, "precision": "float32"}).given()
    return Record(
        asked={**given, "match": match, "lr": asked_lr, "cells": ["gru", "rnn"]},
        plans={"gru": plan | {"cell": "gru"}, "rnn": plan | {"cell": "rnn"} | other},
        parameters={"gru": 1, "rnn": 1}, kind="char", tokenizer="", data={}, part="test", format=FORMAT,
    )  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"batch": 4}, {"bptt": 4}, {"beta2": 0.5}, {"optimizer": "adamw"}, {"precision": "bf16"},
        {"clip": 0.5}, {"schedule": "linear"}, {"weight_decay": 0.5}, {"dropout": 0.5}, {"steps": 4},
        {"warmup": 0.5}, {"eval_every": 1}, {"patience": 3}, {"split": "0.5,0.5"}, {"minutes": 1.0},
        {"tokenizer": "byte"}, {"vocab_size": 99}, {"characters": 99}, {"average": 0.9},
    ],
    ids=str,
)  # fmt: skip
def test_plans_that_differ_in_more_are_our_bug(text: Path, other: dict[str, Any]) -> None:
    recorded(text, width=3, lr=0.5).assert_fair()
    with pytest.raises(AssertionError, match="trained differently"):
        recorded(text, **other).assert_fair()


def test_at_equal_time_plans_differ_but_not_what_is_trained_on(text: Path) -> None:
    recorded(text, "time", batch=4, beta2=0.5, dropout=0.5, width=3).assert_fair()
    for other in ({"split": "0.5,0.5"}, {"minutes": 2.0}, {"tokenizer": "byte"}, {"clip": 0.5}):
        with pytest.raises(AssertionError, match="trained differently"):
            recorded(text, "time", **other).assert_fair()


def test_how_the_rates_were_found_is_said(text: Path) -> None:
    assert trained_how(recorded(text)) == (
        "each at the planner's rate for its cell, not tuned on your text"
    )
    assert trained_how(recorded(text, "time")) == (
        "each with the planner's own plan for its cell, not tuned on your text"
    )
    assert trained_how(recorded(text, asked_lr=0.5)) == "all at the given learning rate"
    assert trained_how(recorded(text, "time", asked_lr=0.5)) == (
        "each with the planner's own plan for its cell, all at the given learning rate"
    )
    before = dataclasses.replace(recorded(text), format=1)
    assert "tuned on GRUs" in trained_how(before)


def test_minutes_become_the_steps_of_the_slowest(text: Path) -> None:
    chosen = configured({"text": [str(text)], "layers": 1, "batch": 2, "bptt": 8, "minutes": 0.5})
    given = dataclasses.replace(chosen, minutes=None, steps=3)
    (planned, _) = plan_cells(given, ["gru", "rnn"], match="width", stop=lambda: None).values()

    def tried(per_second: float, read_seconds: float = 0.0) -> Prepared:
        assert planned.forecast
        return dataclasses.replace(
            planned,
            settings=dataclasses.replace(planned.settings, minutes=0.5, steps=None),
            forecast=dataclasses.replace(planned.forecast, tokens_per_second=per_second),
            read_seconds=read_seconds,
        )

    budget = in_steps(chosen, [tried(3200), tried(1600), tried(32_000)])
    assert (budget.steps, budget.minutes) == (TRAINING_SHARE * 30 * 100, None)
    assert in_steps(chosen, [tried(1600, read_seconds=15)]).steps == TRAINING_SHARE * 15 * 100
    with pytest.raises(UsageError, match=r"no step fits into --minutes 0\.5") as caught:
        in_steps(chosen, [tried(1600, read_seconds=40)])
    assert "takes 40 s" in str(caught.value.why)


def test_what_makes_a_comparison_less_fair_is_said(text: Path) -> None:
    rows = [{"seed": seed, "tokens": 100 + seed} for seed in (0, 0, 1, 1)]  # of two cells
    usual = [*limits(recorded(text), rows)]
    assert usual == ["3 seeds per cell are few: use at least 5 before relying on the verdict"]

    def said(record: Record, rows: list[dict[str, Any]] = rows) -> str:
        (more,) = set(limits(record, rows)) - set(usual)
        return more

    validated = dataclasses.replace(recorded(text), part="valid")
    assert said(validated).startswith("measured on the validation text, which also selected")
    apart = dataclasses.replace(recorded(text), mismatch=0.012)
    assert said(apart).startswith("parameters differ by 1.2%")
    stopped = [{"seed": 0, "tokens": 100}, {"seed": 0, "tokens": 1200}]
    assert said(recorded(text), stopped).endswith("on different numbers of tokens: 100 to 1,200")
    assert [*limits(recorded(text, "time"), stopped)] == usual
    for held_out, why in (
        ({"valid": "other.txt", "test": "other.txt"}, "measured on other.txt, which also selected"),
        ({"test": str(text)}, f"measured on {text}, which the cells were trained on"),
    ):
        asked = {**recorded(text).asked, "split": "0.9,0.1", **held_out}
        assert said(dataclasses.replace(recorded(text), asked=asked)).startswith(why)


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
    # With a budget in minutes alone, the limit on epochs must not depend on the current speed.
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
