"""The rule that chooses what nobody gave."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.config import settings
from gru_lm.errors import InputError, UsageError
from gru_lm.training.planner import (
    LEAST_CHARACTERS,
    MOST_CHARACTERS_FOR_CHAR,
    MOST_PIECES_FULL,
    Plan,
    plan_budget,
    plan_like,
    plan_model,
    plan_tokenizer,
)


def plan(tokens: int = 1_000_000, device: str = "cpu", vocab_size: int = 300, **given: Any) -> Plan:
    return plan_model(
        plan_budget(settings(given)), tokens=tokens, vocab_size=vocab_size, device=device
    )


def test_five_minutes_unless_a_budget_is_given() -> None:
    assert plan_budget(settings({})).minutes == 5
    for name in ("minutes", "epochs", "steps", "tokens"):
        chosen = plan_budget(settings({name: 3}))
        assert getattr(chosen, name) == 3
        assert [chosen.minutes, chosen.epochs, chosen.steps, chosen.tokens].count(None) == 3


def test_the_tokenizer_follows_the_size_of_the_text() -> None:
    assert plan_tokenizer(settings({}), characters=MOST_CHARACTERS_FOR_CHAR) == "char"
    assert plan_tokenizer(settings({}), characters=MOST_CHARACTERS_FOR_CHAR + 1) == "bpe"
    assert plan_tokenizer(settings({"tokenizer": "word"}), characters=10**9) == "word"
    assert plan_tokenizer(settings({}), characters=LEAST_CHARACTERS) == "char"
    with pytest.raises(InputError, match=f"too short: {LEAST_CHARACTERS - 1} characters") as caught:
        plan_tokenizer(settings({}), characters=LEAST_CHARACTERS - 1)
    assert f"at least {LEAST_CHARACTERS}" in str(caught.value.why)


def test_what_is_given_is_kept() -> None:
    given = {
        "layers": 3, "width": 7, "embed": 5, "tied": True, "softmax": "full", "dropout": 0.25,
        "batch": 2, "bptt": 3, "lr": 0.125, "weight_decay": 0.0,
    }  # fmt: skip
    assert plan(cell="lstm", **given) == Plan(cell="lstm", **given)
    assert plan(lr=0).lr == 0


@given(
    tokens=st.integers(1, 10**9),
    vocab_size=st.integers(2, 300_000),
    device=st.sampled_from(["cpu", "cuda"]),
    minutes=st.one_of(st.none(), st.floats(0.01, 1000)),
)
def test_every_text_gets_a_plan_that_fits_it(
    tokens: int, vocab_size: int, device: str, minutes: float | None
) -> None:
    made = plan(tokens, device, vocab_size, minutes=minutes or 5.0)
    assert made.softmax == ("adaptive" if vocab_size > MOST_PIECES_FULL[device] else "full")
    assert 1 <= made.batch * made.bptt <= tokens
    assert made.lr > 0
    assert 0 <= made.dropout < 1
    assert made.tied == (vocab_size > 4096)


def test_a_small_text_gets_a_small_model_and_a_much_repeated_one_dropout() -> None:
    assert plan(10_000).width < plan(1_000_000).width
    assert plan(1_000_000, "cuda").width > plan(1_000_000).width
    assert plan(epochs=1).dropout == 0
    assert plan(epochs=5).dropout > 0
    assert plan(epochs=50).dropout > plan(epochs=5).dropout


def test_many_pieces_get_an_adaptive_softmax_unless_told_otherwise() -> None:
    assert plan(vocab_size=33_000).softmax == "adaptive"
    assert plan(vocab_size=33_000, softmax="full").softmax == "full"
    assert plan(vocab_size=33_000, tied=False).softmax == "full"
    few = plan(vocab_size=300, softmax="adaptive")
    assert (few.softmax, few.tied) == ("adaptive", True)


def test_a_run_begun_from_another_keeps_its_softmax() -> None:
    model = {"cell": "gru", "layers": 1, "width": 8, "embed": 8, "tied": True, "cutoffs": [3, 9]}
    assert plan_like(settings({}), model).softmax == "adaptive"
    assert plan_like(settings({"softmax": "adaptive"}), model).softmax == "adaptive"
    assert plan_like(settings({}), {**model, "cutoffs": []}).softmax == "full"
    with pytest.raises(UsageError, match="--softmax full does not go with --from"):
        plan_like(settings({"softmax": "full"}), model)


def test_batches_larger_than_the_text_are_refused() -> None:
    with pytest.raises(InputError, match="too short: 100 tokens"):
        plan(100, batch=10, bptt=11)
    assert plan(110, batch=10, bptt=11).batch == 10


def test_budgets_in_steps_tokens_and_epochs_are_counted_in_steps() -> None:
    made = plan(1000, batch=5, bptt=10)
    for budget, steps in (
        ({"steps": 7}, 7),
        ({"tokens": 101}, 3),
        ({"epochs": 1.5}, 30),
        ({"epochs": 10, "steps": 7}, 7),
        ({"minutes": 1}, None),
    ):
        assert made.total_steps(settings(budget), tokens=1000) == steps
